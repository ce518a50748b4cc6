"""A GPT-2 of small size that learns a world by heart: sentences about its facts, and questions with their answers."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sparsesteer.cli.models import load_model
from sparsesteer.datasets.biographies import Question
from sparsesteer.methods.alignsae.answering import Answerer
from sparsesteer.methods.alignsae.matching import strict_match

END = "<|endoftext|>"
LONGEST = 48  # tokens of a prompt and its answer


@dataclass(frozen=True)
class Recipe:
    """The size of the model and how it is trained."""

    layers: int = 6
    width: int = 128
    heads: int = 4
    vocabulary: int = 2048
    steps: int = 900
    batch: int = 128
    learning_rate: float = 3e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    statements: float = 0.25  # share of each batch; the rest are questions
    seed: int = 0


def word_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the world's own texts, where nearly every word becomes one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


class Documents:
    """Token ids of texts, each with the first place whose prediction counts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> None:
        end = tokenizer.eos_token_id
        self.rows = []
        for prompt, told in texts:
            before = tokenizer(prompt)["input_ids"] if prompt else []
            self.rows.append(([*before, *tokenizer(told)["input_ids"], end], max(1, len(before))))

    def batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(ids, targets) [B, T], padded on the right; targets are -100 where nothing is to be predicted."""
        rows = [self.rows[i] for i in chosen]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        targets = torch.full_like(ids, -100)
        for row, (tokens, first) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            targets[row, first - 1 : len(tokens) - 1] = torch.tensor(tokens[first:])
        return ids, targets


def endless(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Places in a fresh order each time all were drawn."""
    pending: list[int] = []
    while True:
        while len(pending) < size:
            pending += torch.randperm(count, generator=generator).tolist()
        yield pending[:size]
        pending = pending[size:]


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to a twentieth."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return recipe.learning_rate * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)


def train(
    folder: Path,
    statements: Sequence[str],
    answered: Sequence[tuple[str, str]],
    recipe: Recipe,
    base: str | None = None,
    report_every: int = 100,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of statements, learned whole, and of (prompt, answer), of which the answers; read if it is there.

    Args:
        base: of a model that is fine-tuned, as the command ``sparsesteer`` takes it; a new one by default.
    """
    if (folder / "model.safetensors").exists():
        return load(folder)
    torch.manual_seed(recipe.seed)
    if base is None:
        texts = [*statements, *(prompt + answer for prompt, answer in answered)]
        tokenizer = word_tokenizer(texts, recipe.vocabulary)
        model = new_model(len(tokenizer), tokenizer.eos_token_id, recipe)
    else:
        model, tokenizer = load_model(base)
        model.train()
    told = Documents(tokenizer, [("", text) for text in statements])
    asked = Documents(tokenizer, answered)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.learning_rate, betas=(0.9, 0.98),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(recipe.seed)
    n_told = round(recipe.statements * recipe.batch)
    from_told = endless(len(told.rows), n_told, generator)
    from_asked = endless(len(asked.rows), recipe.batch - n_told, generator)
    started, total = time.time(), 0.0
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = sum(_loss(model, *batch) for batch in (told.batch(next(from_told)), asked.batch(next(from_asked))))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
        if (step + 1) % report_every == 0:
            print(f"step {step + 1}: loss {total / report_every:.3f}, {time.time() - started:.0f} s", flush=True)
            total = 0.0
    model.eval()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return model, tokenizer


def new_model(vocabulary: int, end: int, recipe: Recipe) -> GPT2LMHeadModel:
    """A GPT-2 with weights of chance, without dropout."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=LONGEST,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # the same function as GPT-2's, in one step
        bos_token_id=end,
        eos_token_id=end,
    )
    return GPT2LMHeadModel(config)


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What ``train`` wrote."""
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], batch_size: int = 128
) -> float:
    """The share of questions that are answered exactly."""
    answers = Answerer(model, tokenizer).answers([q.prompt for q in questions], batch_size)
    return sum(strict_match(q.answer, a) for q, a in zip(questions, answers, strict=True)) / len(questions)


def _loss(model: PreTrainedModel, ids: Tensor, targets: Tensor) -> Tensor:
    ids, targets = ids.to(model.device), targets.to(model.device)
    counted = targets != -100
    hidden = model.base_model(ids).last_hidden_state[counted]  # padding lies behind, where nothing looks
    return nn.functional.cross_entropy(model.get_output_embeddings()(hidden), targets[counted])
