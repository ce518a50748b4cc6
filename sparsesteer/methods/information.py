"""How much the activations of features say about labels, in nats."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsesteer import _native, reference
from sparsesteer.methods.code_blocks import blocks_of, in_blocks

ESTIMATORS = ("knn", "histogram")
RandomState = int | np.random.RandomState | None


def mutual_information(
    codes: Any,
    labels: Any,
    estimator: str = "knn",
    n_neighbors: int = 3,
    random_state: RandomState = 0,
    block: int = 1024,
    *,
    n_bins: int = 16,
    n_features: int | None = None,
) -> Tensor:
    """The mutual information [F] of every feature's activation with labels, in nats, fp64, on the CPU.

    "knn" is the estimate of Ross (2014) from nearest neighbours, as ``mutual_info_classif`` of scikit-learn computes
    it for dense codes: the numbers that it gives for one block of features after the other with this ``random_state``.
    (In classes of at most 2 n_neighbors + 1 samples it measures distances more coarsely than its noise is, and differs
    in the third decimal.) Tiny noise sets equal values apart, and so a dead feature gets a little information as well:
    where most are dead, most of the sum.

    "histogram" is the plug-in estimate from counts: 0 is a bin of its own, what is not 0 falls in ``n_bins`` equal
    steps from a feature's smallest to its largest. A dead feature has exactly 0. It is too high by about
    (bins used - 1) (classes - 1) / 2n.

    Args:
        codes: dense [n, F]; a CSR matrix, torch's or SciPy's; or SparseCodes of n tokens. Nothing n x F is made.
        labels: [n], whole numbers, bools or text.
        n_neighbors: of "knn"; in a class of fewer samples as many as there are. A class of one sample is left out.
        random_state: seed of the noise, the same for every block; a RandomState goes on from block to block.
        block: features that are dense at a time; every block of one width has the same noise.
        n_features: F of SparseCodes, which do not say it; by default the highest index + 1.

    Raises:
        ValueError, TypeError: arguments that do not fit each other, NaN or infinite codes, fewer than two classes.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"mutual_information: estimator should be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    for name, number in (("n_neighbors", n_neighbors), ("block", block), ("n_bins", n_bins)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"mutual_information: {name} should be a positive whole number, got {number!r}")
    columns_of = blocks_of(codes, n_features)
    classes = _classes(labels, columns_of.n_samples)
    estimate = _Neighbours(classes, n_neighbors, random_state) if estimator == "knn" else _Histogram(classes, n_bins)
    found = torch.zeros(columns_of.n_features, dtype=torch.float64)
    for first, end in in_blocks(columns_of.n_features, block):
        columns = columns_of.columns(first, end)
        lowest, highest = columns.aminmax(dim=-1)
        broken = ~(torch.isfinite(lowest) & torch.isfinite(highest))
        if broken.any():
            feature = first + int(broken.nonzero()[0])
            raise ValueError(f"mutual_information: the codes of feature {feature} have NaN or infinite values")
        found[first:end] = estimate(columns, (lowest != 0) | (highest != 0)).cpu()
    return found


def _classes(labels: Any, n_samples: int) -> Tensor:
    """Class numbers int32 [n], from 0."""
    array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if array.shape != (n_samples,):
        raise ValueError(f"mutual_information: labels should have shape [{n_samples}], got {list(array.shape)}")
    if array.dtype.kind not in "biuUf" or (array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array))):
        raise TypeError(f"mutual_information: labels should be whole numbers, bools or text, got {array.dtype}")
    names, classes = np.unique(array, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"mutual_information: labels of two classes or more are needed, all {n_samples} samples have "
            f"{names[0].item()!r}"
            if n_samples
            else "mutual_information: there are no samples"
        )
    return torch.from_numpy(classes.astype(np.int32))


@dataclass(frozen=True, eq=False)
class _Noise:
    """One draw for a block of features; what dead features are told by it is found out once."""

    values: Tensor  # [W, n]
    order: Tensor  # int32 [W, n]
    of_dead: Tensor  # [W], NaN where not known yet

    @classmethod
    def drawn(cls, generator: np.random.RandomState, width: int, n_samples: int) -> "_Noise":
        values = torch.from_numpy(generator.standard_normal((n_samples, width))).T.contiguous()
        return cls(values, values.argsort(-1).int(), torch.full((width,), torch.nan, dtype=torch.float64))


class _Neighbours:
    """ "knn" of columns that share noise."""

    def __init__(self, classes: Tensor, n_neighbors: int, random_state: RandomState) -> None:
        counts = classes.bincount()
        lone = (counts == 1)[classes]
        if lone.all():
            raise ValueError("mutual_information: every sample has a label of its own; knn needs classes of several")
        numbers = torch.cumsum(counts > 1, 0) - 1
        self.classes = torch.where(lone, -1, numbers[classes]).int()
        self.n_neighbors = n_neighbors
        self.random_state = random_state
        self.noise: _Noise | None = None

    def __call__(self, columns: Tensor, alive: Tensor) -> Tensor:
        """[F] of columns [F, n], those that are not alive being 0."""
        noise = self._noise_for(len(columns))
        dead = ~alive.cpu()
        found = noise.of_dead.clone()
        unknown = (dead & found.isnan()).nonzero().flatten()
        noise.of_dead[unknown] = self._estimates(columns.new_zeros(len(unknown), columns.shape[1]), noise, unknown)
        found = torch.where(dead, noise.of_dead, found)
        living = (~dead).nonzero().flatten()
        found[living] = self._estimates(columns[living.to(columns.device)] if dead.any() else columns, noise, living)
        return found

    def _noise_for(self, width: int) -> _Noise:
        state = self.random_state
        if self.noise is None or not isinstance(state, int) or len(self.noise.values) != width:
            generator = state if isinstance(state, np.random.RandomState) else np.random.RandomState(state)
            self.noise = _Noise.drawn(generator, width, len(self.classes))
        return self.noise

    def _estimates(self, columns: Tensor, noise: _Noise, noise_rows: Tensor) -> Tensor:
        if not len(columns):
            return torch.empty(0, dtype=torch.float64)
        native, device = getattr(_native.extension, "mutual_information", None), columns.device
        if native is not None and device.type == "cpu":
            return native(columns, self.classes, noise.values, noise.order, noise_rows, self.n_neighbors)
        given = (self.classes, noise.values, noise.order, noise_rows)
        labels, values, order, rows = (each.to(device) for each in given)
        return reference.mutual_information(columns, labels, values, order, rows, self.n_neighbors).cpu()


class _Histogram:
    """ "histogram" of columns."""

    def __init__(self, classes: Tensor, n_bins: int) -> None:
        self.classes, self.n_classes, self.n_bins = classes.long(), int(classes.max()) + 1, n_bins

    def __call__(self, columns: Tensor, alive: Tensor) -> Tensor:
        """[F] of columns [F, n]."""
        width, n = columns.shape
        n_bins = self.n_bins + 1
        cell = self._bins(columns) + n_bins * torch.arange(width, device=columns.device)[:, None]
        cell = cell * self.n_classes + self.classes.to(columns.device)
        counts = cell.flatten().bincount(minlength=width * n_bins * self.n_classes)
        joint = counts.view(width, n_bins, self.n_classes).double()
        expected = joint.sum(-1, keepdim=True) * joint.sum(1, keepdim=True) / n
        return torch.xlogy(joint, torch.where(joint > 0, joint / expected, 1.0)).sum((1, 2)).clamp(min=0) / n

    def _bins(self, columns: Tensor) -> Tensor:
        """0 for what is 0, else 1 to n_bins by equal steps."""
        active = columns != 0
        lowest = torch.where(active, columns, torch.inf).amin(-1, keepdim=True)
        span = torch.where(active, columns, -torch.inf).amax(-1, keepdim=True) - lowest
        steps = ((columns - lowest) / span.clamp(min=torch.finfo(columns.dtype).tiny) * self.n_bins).floor()
        return torch.where(active, steps.nan_to_num().clamp(0, self.n_bins - 1).long() + 1, 0)
