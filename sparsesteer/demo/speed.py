"""Tokens per second of decoding: unsteered, steered by this package, by gathered torch, by SAELens's class."""

import copy
import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsesteer import hooks
from sparsesteer._layout import Column
from sparsesteer.demo.block_hook import Transform, transformed
from sparsesteer.demo.setting import Setting, Track
from sparsesteer.edits import Edit
from sparsesteer.plans import SteeringPlan

FACTOR = 2.0  # every edited feature is scaled by it
GATHERED = "gathered torch"
LARGEST_DIFFERENCE = 1e-3  # of steered logits between implementations, relative to what steering changes


@dataclass(frozen=True)
class SpeedRow:
    """One way of decoding. Ratios are tokens/s relative to unsteered, paired round by round."""

    name: str
    tokens_per_second: float  # median
    ratio: float  # median
    ratio_low: float  # 95 % interval of that median
    ratio_high: float
    difference: float  # of its logits from gathered torch, relative to what steering changes


Way = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class SpeedResult:
    """All rows, or none and the reason."""

    n_features: int
    n_tokens: int
    rows: tuple[SpeedRow, ...]
    notes: tuple[str, ...]


def gathered_torch(plan: SteeringPlan) -> Transform:
    """Scaling by FACTOR in plain torch on the edited rows alone: three matrix-sized calls."""
    threshold, bias = plan.rows[:, Column.THRESHOLD], plan.rows[:, Column.BIAS]

    def transform(h: Tensor) -> Tensor:
        flat = h.view(-1, h.shape[-1])
        z = F.linear(flat, plan.encoder, bias)
        f = torch.where(z > threshold, z.relu(), 0.0)
        return torch.addmm(flat, f, plan.decoder, alpha=FACTOR - 1).view_as(h)

    return transform


def saelens_class(folder: Path, features: Tensor, device: str) -> Transform:
    """SAELens's own class: encode all, edit at its hook point, decode all, add the error term."""
    from sae_lens import SAE as LensSAE

    lens = LensSAE.load_from_disk(folder, device=device, dtype="float32")
    with warnings.catch_warnings():
        # sae_lens announces another way, for models that it loads itself; here the SAE stands alone
        warnings.simplefilter("ignore", DeprecationWarning)
        lens.use_error_term = True

    def scale(codes: Tensor, hook: Any) -> Tensor:
        codes = codes.clone()
        codes[..., features] *= FACTOR
        return codes

    lens.add_hook("hook_sae_acts_post", scale)
    return lens


@torch.no_grad()
def measure(setting: Setting, n_features: int, n_tokens: int, rounds: int, track: Track) -> SpeedResult:
    """Read the model's own answer token by token, after the prompt, in every way in turn, ``rounds`` times.

    The tokens are given, so that all ways do the same work. Their logits are compared first; if they disagree,
    nothing is timed. The ``n_features`` most frequent features are scaled by FACTOR.
    """
    features = setting.density.topk(min(n_features, len(setting.density))).indices
    ways, notes = _ways(setting, features)
    tokens = torch.tensor(setting.own_ids[:n_tokens], device=setting.prompt_ids.device)
    cache = setting.model(setting.prompt_ids, use_cache=True).past_key_values

    logits = {name: _read(setting.model, way, cache, tokens)[0] for name, way in ways.items()}
    differences = relative_differences(logits)
    apart = {name: value for name, value in differences.items() if not value <= LARGEST_DIFFERENCE}
    if apart:
        listed = ", ".join(f"{name} by {value:.1e}" for name, value in apart.items())
        notes.append(f"the steered logits disagree ({listed}; allowed {LARGEST_DIFFERENCE:g}), so no speed is shown")
        return SpeedResult(len(features), len(tokens), (), tuple(notes))

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in track(range(rounds), "Timing"):
        start = turn % len(names)  # no way is always first
        for name in names[start:] + names[:start]:
            seconds[name].append(_read(setting.model, ways[name], cache, tokens)[1])
    rows = tuple(_row(name, seconds, len(tokens), differences.get(name, 0.0)) for name in names)
    return SpeedResult(len(features), len(tokens), rows, tuple(notes))


def _ways(setting: Setting, features: Tensor) -> tuple[dict[str, Way], list[str]]:
    """What makes each way of decoding, by name; and notes on those left out."""
    plan = setting.sae.plan(Edit.scale(dict.fromkeys(features.tolist(), FACTOR))).to(setting.prompt_ids.device)
    ways: dict[str, Way] = {
        "unsteered": nullcontext,
        "sparsesteer": lambda: hooks.steer(setting.model, plan),
        GATHERED: lambda: transformed(setting.block, gathered_torch(plan)),
    }
    if util.find_spec("sae_lens") is None:
        return ways, ["SAELens's class is left out: pip install sparsesteer[lens]"]
    lens = saelens_class(setting.folder, features, str(setting.prompt_ids.device))
    ways["SAELens's class, error term"] = lambda: transformed(setting.block, lens)
    return ways, []


def _read(model: nn.Module, way: Way, cache: Any, tokens: Tensor) -> tuple[Tensor, float]:
    """(logits [T, V], seconds) of reading ``tokens`` one by one after the cached prompt."""
    cache = copy.deepcopy(cache)
    with way():
        started = time.perf_counter()
        logits = [model(token.view(1, 1), past_key_values=cache, use_cache=True).logits[0] for token in tokens]
        seconds = time.perf_counter() - started
    return torch.cat(logits), seconds


def relative_differences(logits: dict[str, Tensor]) -> dict[str, float]:
    """How far each steered way is from gathered torch, relative to what gathered torch changes; inf if it
    changes nothing, since then nothing is compared."""
    truth = logits[GATHERED].double()
    change = (truth - logits["unsteered"].double()).norm().item()
    return {
        name: (value.double() - truth).norm().item() / change if change > 0 else math.inf
        for name, value in logits.items()
        if name != "unsteered"
    }


def _row(name: str, seconds: dict[str, list[float]], tokens: int, difference: float) -> SpeedRow:
    ratios = torch.tensor(seconds["unsteered"]) / torch.tensor(seconds[name])
    low, high = median_interval(ratios)
    median_seconds = torch.tensor(seconds[name]).median().item()
    return SpeedRow(name, tokens / median_seconds, ratios.median().item(), low, high, difference)


def median_interval(values: Tensor, resamples: int = 4000) -> tuple[float, float]:
    """95 % bootstrap interval of the median of values [n], with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (resamples, len(values)), generator=generator)
    low, high = values[picks].median(-1).values.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
