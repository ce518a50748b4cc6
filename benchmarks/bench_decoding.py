"""Tokens per second of a model that is steered, beside itself unsteered.

python -m sparsesteer.benchmarks.bench_decoding takes random weights in the shape of SmolLM2-135M, and a tiny model
that shows what the hook itself costs; ``sparsesteer bench --decoding`` takes the real model.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparsesteer as ss
from sparsesteer.benchmarks import competitors, machine, report, timing
from sparsesteer.benchmarks.gate import WrongResult
from sparsesteer.benchmarks.weights import VALUE, Weights
from sparsesteer.model.sites import ModelSites
from sparsesteer.plans import SteeringPlan

LAYER, N_EDITED = 16, 64
PROMPT_TOKENS, CHECKED_TOKENS = 16, 4
PAIRS = 200  # of one token each: a machine's noise is slow, so that both of a pair see the same
LEAST_RATIO = 0.98  # the goal, for the lower end of the interval
LOGITS_ERROR = 1e-3  # of steered logits against a plain torch hook, relative to what steering changes

Way = Callable[[], AbstractContextManager]
UNSTEERED, STEERED = "unsteered", "steered"


@dataclass(frozen=True)
class Decoding:
    """One token at a time behind a cached prompt; times are of one token."""

    model: str
    sae: str
    device: str
    layer: int
    M: int
    pairs: int
    unsteered: timing.Spread  # microseconds
    steered: timing.Spread
    ratio: timing.Ratio  # steered / unsteered tokens per second
    overhead_us: float  # median of the differences within a pair
    goal_met: bool

    def as_json(self) -> dict[str, object]:
        """With the machine."""
        return {"op": "decoding"} | asdict(self) | machine.facts(self.device) | {"tokens_per_second": self.speed}

    @property
    def speed(self) -> dict[str, float]:
        """Median tokens per second."""
        return {UNSTEERED: 1e6 / self.unsteered.p50, STEERED: 1e6 / self.steered.p50}

    def __str__(self) -> str:
        return (
            f"{self.model}, layer {self.layer}, {self.M} features of {self.sae}: {self.speed[UNSTEERED]:.1f} tokens/s "
            f"unsteered, {self.speed[STEERED]:.1f} steered; ratio {self.ratio.median:.4f}, 95 % interval "
            f"{self.ratio.low:.4f} to {self.ratio.high:.4f} over {self.pairs} pairs "
            f"({self.overhead_us:+.0f} us a token)"
        )


def plan_of(sae: ss.SAE) -> SteeringPlan:
    """The first ``N_EDITED`` features set to a value: every token is changed by all of them."""
    return sae.plan(ss.Edit.set(dict.fromkeys(range(N_EDITED), VALUE)))


def random_plan(width: int, device: str) -> SteeringPlan:
    """The same of a random SAE."""
    weights = Weights.random(width, 8 * width, 0, device, torch.float32)
    return weights.plans(min(N_EDITED, 8 * width), 1)[0]


@torch.no_grad()
def measure(model: nn.Module, name: str, plan: SteeringPlan, sae: str, layer: int, pairs: int = PAIRS) -> Decoding:
    """Time ``pairs`` interleaved pairs of one token unsteered and one steered.

    Raises:
        WrongResult: the steered logits are not those of a plain torch hook.
    """
    device: torch.device = model.device  # type: ignore[assignment]
    vocabulary: int = model.config.vocab_size  # type: ignore[union-attr,assignment]
    ids = torch.randint(vocabulary, (1, PROMPT_TOKENS + CHECKED_TOKENS), generator=torch.Generator().manual_seed(0))
    prompt, new = ids.to(device).split([PROMPT_TOKENS, CHECKED_TOKENS], dim=1)
    cache = model(prompt, use_cache=True).past_key_values
    ways: dict[str, list[Way]] = {UNSTEERED: [nullcontext], STEERED: [lambda: ss.steer(model, {layer: plan})]}
    _check_logits(model, cache, new, ways[STEERED][0], plan, layer)

    def clock(calls: timing.Calls, turn: int) -> float:
        return _decode(model, cache, new[:, :1], calls[0])[1]  # type: ignore[arg-type]

    times = timing.interleave(ways, clock=clock, seconds=0, least_rounds=pairs, most_rounds=pairs)
    ratio = timing.Ratio.of(times[UNSTEERED], times[STEERED])
    differences = torch.tensor(times[STEERED]) - torch.tensor(times[UNSTEERED])
    return Decoding(
        model=name,
        sae=sae,
        device=device.type,
        layer=layer,
        M=len(plan),
        pairs=len(times[STEERED]),
        unsteered=timing.Spread.of(times[UNSTEERED]),
        steered=timing.Spread.of(times[STEERED]),
        ratio=ratio,
        overhead_us=differences.median().item(),
        goal_met=ratio.low >= LEAST_RATIO,
    )


def _decode(model: nn.Module, cache: Any, tokens: Tensor, way: Way) -> tuple[Tensor, float]:
    """(logits [T, V], microseconds a token) of reading tokens [1, T] one by one behind a copy of the cache.

    The tokens are given, so that both ways do the same work.
    """
    cache = copy.deepcopy(cache)
    logits = []

    def read() -> None:
        for token in tokens.split(1, dim=1):
            logits.append(model(token, past_key_values=cache, use_cache=True).logits[0])

    clock = timing.event_clock if tokens.is_cuda else timing.stopwatch
    with way():
        microseconds = clock([read], 0)
    return torch.cat(logits), microseconds / tokens.shape[1]


def _check_logits(model: nn.Module, cache: Any, new: Tensor, steered: Way, plan: SteeringPlan, layer: int) -> None:
    ours = _decode(model, cache, new, steered)[0].double()
    plain = _decode(model, cache, new, lambda: _plain_hook(model, plan, layer))[0].double()
    change = (plain - _decode(model, cache, new, nullcontext)[0]).norm()
    error = ((ours - plain).norm() / change).item()
    if not error <= LOGITS_ERROR:
        raise WrongResult(f"decoding: steered logits differ from a plain hook's by {error:.2g}; no speed is shown")


@contextmanager
def _plain_hook(model: nn.Module, plan: SteeringPlan, layer: int) -> Iterator[None]:
    transform = competitors.gathered(plan)

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        steered = transform(h.flatten(0, -2)).view_as(h)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    handle = ModelSites.of(model).resolve(layer).module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def random_model(tiny: bool, device: str) -> nn.Module:
    """A Llama with random weights: SmolLM2-135M's shape, or so small that a hook's own cost shows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 256}
        if tiny
        else {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
              "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape)).eval().to(device)


def measure_shape(device: str, pairs: int = PAIRS) -> Decoding:
    """Random weights, the real model's shape: the speed does not depend on the values."""
    model, plan = random_model(False, device), random_plan(576, device)
    return measure(model, "random weights in SmolLM2-135M's shape", plan, "a random SAE", LAYER, pairs)


def measure_tiny(device: str, pairs: int = PAIRS) -> Decoding:
    """A model so small that the hook's own time shows."""
    model, plan = random_model(True, device), random_plan(64, device)
    return measure(model, "a tiny Llama of 2 blocks", plan, "a random SAE", 1, pairs)


def main() -> int:
    """Random models: nothing is downloaded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="at least 2")
    options = parser.parse_args()
    try:
        results = [measure_shape(options.device, options.pairs), measure_tiny(options.device, options.pairs)]
    except WrongResult as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, results)))
    if options.json:
        report.write_json([result.as_json() for result in results], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
