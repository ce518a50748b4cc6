"""A tiny random Llama, SAEs at two of its blocks, and specs of every kind, for tests of serving."""

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import sparsesteer as ss
from sparsesteer.serving import ServedSpec

WIDTH, N_FEATURES, VOCABULARY = 128, 256, 512


def tiny_llama() -> LlamaForCausalLM:
    """Weights four times the usual, so that greedy tokens depend on what was read."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    return model


def sae_at(block: int, activation: ss.activations.Activation | None = None, seed: int = 1) -> ss.SAE:
    """A random SAE for the residual after a block."""
    generator = torch.Generator().manual_seed(10 * block + seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return ss.SAE(
        W_enc=numbers(WIDTH, N_FEATURES) / WIDTH**0.5,
        W_dec=numbers(N_FEATURES, WIDTH) / WIDTH**0.5,
        b_enc=numbers(N_FEATURES) * 0.1,
        b_dec=numbers(WIDTH) * 0.1,
        activation=activation or ss.JumpReLU(threshold=torch.full((N_FEATURES,), 0.2)),
        site=ss.Site(hook_name=f"blocks.{block}.hook_resid_post"),
    )


def saes() -> dict[int, ss.SAE]:
    return {1: sae_at(1), 2: sae_at(2, ss.ReLU())}


def specs() -> dict[str, ServedSpec]:
    """Constant and encoded edits, one site and two, every kind of positions."""
    one, two = saes()[1], saes()[2]
    many = range(40)
    return {
        "set": ServedSpec(one.plan(ss.Edit.set({3: 6.0, 7: 5.0}))),
        "add-generated": ServedSpec(two.plan(ss.Edit.add({5: 6.0})), "generated"),
        "two-sites-prompt": ServedSpec(
            {
                1: one.plan(ss.Edit.scale({feature: 3.0 for feature in many})),
                2: two.plan(ss.Edit.cap({feature: 0.1 for feature in many})),
            },
            "prompt",
        ),
        "last": ServedSpec(two.plan(ss.Edit.set({9: 20.0})), "last_prompt"),
        "from-second": ServedSpec(two.plan(ss.Edit.floor({9: 9.0, 11: 4.0})), slice(2, None)),
        "indices": ServedSpec(one.plan(ss.Edit.set({20: 12.0, 21: 9.0})), [0, 2, -1]),
        "gated": ServedSpec(one.plan(ss.Edit.add({i: 2.0 for i in range(60, 90)}, when_active=True)), "all", 2.0),
    }


def write_saes(folder: Path) -> list[dict]:
    """The SAEs as files; returns the declaration of their sites."""
    for block, sae in saes().items():
        sae.save(folder / f"sae{block}")
    return [{"sae": str(folder / f"sae{block}"), "features": 160} for block in saes()]


def prompts(count: int, shortest: int = 4, longest: int = 60, seed: int = 3) -> list[list[int]]:
    """Token ids without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def expected(model: LlamaForCausalLM, prompt: list[int], wish: str | None, new_tokens: int) -> list[int]:
    """What Hugging Face generates greedily under the hook."""
    return greedy(model, prompt, new_tokens, specs(), wish)


def greedy(
    model: PreTrainedModel, prompt: list[int], new_tokens: int, known: dict[str, ServedSpec], wish: str | None
) -> list[int]:
    """What Hugging Face generates, under the hook if a wish names one of the specs."""
    ids = torch.tensor([prompt])
    options = {
        "max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }  # fmt: skip
    if wish is None:
        return model.generate(ids, **options)[0, len(prompt) :].tolist()
    with steered_by(model, known, wish):
        return model.generate(ids, **options)[0, len(prompt) :].tolist()


def steered_by(model: PreTrainedModel, known: dict[str, ServedSpec], wish: str) -> AbstractContextManager:
    """The hook of ``ss.steer`` for what a request asks for."""
    name, _, strength = wish.partition("@")
    spec = known[name]
    return ss.steer(model, spec.plans, spec.strength * float(strength or 1), spec.positions)


def agreed(
    model: PreTrainedModel, known: dict[str, ServedSpec], prompt: list[int], wish: str | None, answer: list[int]
) -> list[int]:
    """What Hugging Face would say after the prompt and each beginning of an answer, under the hook.

    The answer itself, if it is what Hugging Face generates greedily. One call, as assisted generation checks its
    candidates, takes a tenth of the time that generating takes.
    """
    ids = torch.tensor([prompt + answer[:-1]])
    with torch.no_grad(), ExitStack() as hook:
        if wish is not None:
            hook.enter_context(steered_by(model, known, wish))
        cache = DynamicCache(config=model.config)
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=len(answer)).logits
    return logits[0].argmax(-1).tolist()
