"""Right before fast: every competitor's result against fp64, before any of them is timed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsesteer import ops
from sparsesteer._layout import Column
from sparsesteer.benchmarks.case import Case
from sparsesteer.benchmarks.weights import VALUE, Weights
from sparsesteer.plans import SteeringPlan

OURS = "sparsesteer"
EDIT_ERROR = 1e-5  # ||(out - w) - (want - w)|| / ||want - w|| in fp32
# whole reconstructions cancel in the others, which is their nature; the gate shows that they compute the same thing
OTHERS_EDIT_ERROR = 1e-3
BF16_OF_EDIT = 1e-2  # of an element's change, beside one unit in the last place of the result
OTHERS_BF16 = 2e-2  # of the largest value, for codes and reconstructions computed in bf16 throughout
JUMP_MARGIN = 1e-5
SAMPLE = 8  # tokens looked at where every feature takes part
BAND = 4096  # encoder or decoder rows in fp64 at a time


class WrongResult(RuntimeError):
    """A competitor does not compute what the reference computes, so nothing may be said about its speed."""


def edit_error(out: Tensor, want: Tensor, w: Tensor) -> float:
    """fp32: the error of the edit relative to the edit. bf16: the largest error of an element over what is allowed."""
    change, miss = want - w.double(), (out.double() - want).abs()
    if out.dtype == torch.float32:
        return (miss.norm() / change.norm()).item()
    unit = torch.ldexp(torch.ones_like(want), torch.frexp(want).exponent - 8)
    return (miss / (unit + BF16_OF_EDIT * change.abs())).max().item()


@dataclass(frozen=True)
class Edited:
    """What steering must give on the tokens whose result rounding does not decide."""

    case: object
    tokens: Tensor  # int64 [n]
    want: Tensor  # fp64 [n, D]
    w: Tensor  # [N, D], the tensor that is edited

    def check(self, name: str, out: Tensor) -> None:
        """Compare a result [N, D].

        Raises:
            WrongResult: with the competitor, the case and the error.
        """
        if out.shape != self.w.shape or out.dtype != self.w.dtype:
            raise WrongResult(f"{self.case}: {name} gives {list(out.shape)} in {out.dtype}")
        error = edit_error(out[self.tokens], self.want, self.w[self.tokens])
        limit = EDIT_ERROR if name == OURS else OTHERS_EDIT_ERROR
        _refuse(self.case, name, error, limit if self.w.dtype == torch.float32 else 1)


def edited_rows(plan: SteeringPlan, h: Tensor, case: object) -> Edited:
    """What ``steer`` must give; a token with a pre-activation next to a threshold is left out."""
    doubled = plan.to(dtype=torch.float64)
    tokens = _away_from_thresholds(doubled, h, case)
    return Edited(case, tokens, ops.steer(h[tokens].double(), doubled, backend="reference"), h)


@dataclass(frozen=True)
class Activations:
    """What the features of a plan must do on the tokens where rounding does not decide it."""

    case: Case
    tokens: Tensor  # int64 [n]
    want: Tensor  # fp64 [n, M]

    def check(self, name: str, f: Tensor) -> None:
        """Compare activations [N, M]."""
        error = (f[self.tokens].double() - self.want).norm() / self.want.norm().clamp(min=1e-30)
        _refuse(self.case, name, error.item(), EDIT_ERROR if name == OURS else OTHERS_EDIT_ERROR)


def activations_of(plan: SteeringPlan, h: Tensor, case: Case) -> Activations:
    """What ``activations`` must give; a token with a pre-activation next to a threshold is left out."""
    doubled = plan.to(dtype=torch.float64)
    tokens = _away_from_thresholds(doubled, h, case)
    return Activations(case, tokens, ops.activations(h[tokens].double(), doubled, backend="reference"))


@dataclass(frozen=True)
class Codes:
    """Pre-activations z [n, F] in fp64 of a few tokens, and the number [n, 1] that active ones exceed."""

    case: Case
    tokens: Tensor  # int64 [n]
    z: Tensor
    border: Tensor

    @classmethod
    def of(cls, weights: Weights, h: Tensor, case: Case) -> "Codes":
        """The codes of up to ``SAMPLE`` tokens of h [N, D], spread evenly."""
        tokens = torch.linspace(0, len(h) - 1, min(len(h), SAMPLE), device=h.device).long()
        x = h[tokens].double()
        bands = weights.encoder[: weights.n_features].split(BAND)
        z = torch.cat([x @ band.double().T for band in bands], -1) + weights.bias.double()
        if case.activation == "topk":
            last, first_out = z.topk(case.K + 1).values[:, -2:].split(1, -1)
            return cls(case, tokens, z, (last + first_out) / 2)
        return cls(case, tokens, z, torch.full_like(z[:, :1], weights.threshold(case.K)))

    @property
    def f(self) -> Tensor:
        """All activations [n, F]."""
        return torch.where(self.z > self.border, self.z.relu(), torch.zeros_like(self.z))

    def check(self, name: str, dense: Tensor) -> None:
        """Compare all activations [n, F] of the tokens; one next to the border may be active or not."""
        precision = JUMP_MARGIN if name == OURS else OTHERS_EDIT_ERROR if self.case.dtype == "fp32" else OTHERS_BF16
        allowed = precision * self.z.abs().max()
        miss = (dense.double() - self.f).abs()
        near = (self.z - self.border).abs() < allowed
        other = (dense.double() - self.z.relu()).abs()
        miss = torch.where(near, torch.minimum(dense.double().abs(), other), miss)
        _refuse(self.case, name, (miss.max() / allowed).item(), 1)

    def steered(self, weights: Weights, h: Tensor) -> Edited:
        """What ``steer_topk`` must give: the difference of the edited codes, decoded."""
        safe, f = self._decided()
        edited = slice(self.case.M)
        change = (VALUE - f[:, edited]) @ weights.decoder[edited].double()
        return Edited(self.case, safe, h[safe].double() + change, h)

    def watched(self) -> "Activations":
        """What ``activations_topk`` must give: the codes of the first features."""
        safe, f = self._decided()
        return Activations(self.case, safe, f[:, : self.case.M])

    def reconstructed(self, weights: Weights, h: Tensor) -> Edited:
        """What ``steer_reconstruct`` must give: all edited codes, decoded."""
        safe, f = self._decided()
        f[:, : self.case.M] = VALUE
        bands = weights.decoder[: weights.n_features].split(BAND)
        starts = range(0, weights.n_features, BAND)
        parts = [f[:, s : s + BAND] @ band.double() for s, band in zip(starts, bands, strict=True)]
        return Edited(self.case, safe, torch.stack(parts).sum(0), h)

    def _decided(self) -> tuple[Tensor, Tensor]:
        """(tokens, their activations) without a feature next to the border."""
        safe = ((self.z - self.border).abs() >= JUMP_MARGIN).all(-1)
        return _some(self.tokens[safe], self.case), self.f[safe]


@dataclass(frozen=True)
class Decoded:
    """What ``decode`` must give on a few tokens."""

    case: Case
    tokens: Tensor
    want: Tensor  # fp64 [n, D]

    @classmethod
    def of(cls, weights: Weights, values: Tensor, indices: Tensor, case: Case) -> "Decoded":
        """From values and indices [N, K]."""
        tokens = torch.linspace(0, len(values) - 1, min(len(values), SAMPLE), device=values.device).long()
        picked = weights.decoder[indices[tokens].long()].double()
        return cls(case, tokens, (values[tokens].double()[..., None] * picked).sum(-2))

    def check(self, name: str, out: Tensor) -> None:
        """Compare a reconstruction [N, D]."""
        error = ((out[self.tokens].double() - self.want).norm() / self.want.norm()).item()
        exact = self.case.row_dtype == "fp32" or name == OURS
        _refuse(self.case, name, error, EDIT_ERROR if exact else OTHERS_BF16)


def _away_from_thresholds(plan: SteeringPlan, h: Tensor, case: object) -> Tensor:
    """The tokens [n] without a pre-activation next to a threshold; the plan is in fp64."""
    z = h.double() @ plan.encoder.T + plan.rows[:, Column.BIAS]
    safe = ((z - plan.rows[:, Column.THRESHOLD]).abs() >= JUMP_MARGIN).all(-1)
    return _some(safe.nonzero()[:, 0], case)


def _some(tokens: Tensor, case: object) -> Tensor:
    if not len(tokens):
        raise WrongResult(f"{case}: every token is next to a threshold, so nothing can be compared")
    return tokens


def _refuse(case: object, name: str, error: float, limit: float) -> None:
    if not error <= limit:  # NaN is refused too
        raise WrongResult(f"{case}: {name} is wrong, its error is {error:.2g}; no speed is shown")
