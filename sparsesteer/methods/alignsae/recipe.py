"""How an AlignSAE is trained: its size, its losses' weights, its two stages."""

import math
from dataclasses import dataclass, field, fields
from numbers import Real

FREE = ("identity", "relu", "topk")
BINDINGS = ("mse", "ce")
ORTHOGONALITIES = ("covariance", "correlation")


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts in the sum; the published numbers, but for ``invariance``, which is ours."""

    reconstruction: float = 1.0
    sparsity: float = 1e-3
    binding: float = 1.0
    independence: float = 1e-2
    orthogonality: float = 1e-2
    value: float = 0.5
    invariance: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            weight = getattr(self, each.name)
            if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= float(weight) < math.inf:
                raise ValueError(f"AlignSAE: the weight of {each.name} should be a number from 0 on, got {weight!r}")


@dataclass(frozen=True)
class Recipe:
    """Everything about training that is not data.

    Args:
        n_free: free features; those of the SAE that training starts from, where there is one.
        free: their activation: "identity" as in the released code, "relu", or "topk" (``k`` per token, saved as a
            JumpReLU with the mean threshold). An SAE that training starts from keeps its own.
        bind: "mse" of the slots with the one-hot concept (one relation), or "ce" of their softmax (two relations).
        orthogonality: squares of "covariance" (released code) or of "correlation" (the authors' website).
        stage_one: epochs of reconstruction and sparsity alone.
        stage_two: epochs of all losses.
        sparsity_in_stage_one: the released code leaves it out.
        learning_rate: of AdamW, constant.
        weight_decay: AdamW's own default in the released code, 0 in the paper's appendix.
        clip: largest norm of the gradient; None for none, as in the released code.
        hidden: width of the value heads.
        normalize: divide the states by their root mean square; folded into the saved weights.
        bf16: matrix products in bfloat16 (``torch.autocast``), the losses in fp32.
        patience: stage two ends after so many epochs without a better one; None for never.
        checkpoint_every: epochs between checkpoints.

    Raises:
        ValueError: a number or name that is none of these.
    """

    n_free: int = 100_000
    free: str = "identity"
    k: int = 32
    bind: str = "mse"
    orthogonality: str = "covariance"
    weights: LossWeights = field(default_factory=LossWeights)
    stage_one: int = 50
    stage_two: int = 100
    sparsity_in_stage_one: bool = True
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip: float | None = 1.0
    hidden: int = 256
    normalize: bool = True
    bf16: bool = False
    patience: int | None = None
    checkpoint_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("free", FREE), ("bind", BINDINGS), ("orthogonality", ORTHOGONALITIES)):
            if getattr(self, name) not in known:
                raise ValueError(f"AlignSAE: {name} should be one of {', '.join(known)}, got {getattr(self, name)!r}")
        least = {"n_free": 1, "k": 1, "stage_one": 0, "stage_two": 0, "batch_size": 2, "hidden": 1}
        least |= {"checkpoint_every": 1} | ({} if self.patience is None else {"patience": 1})
        for name, fewest in least.items():
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < fewest:
                raise ValueError(f"AlignSAE: {name} should be a whole number from {fewest} on, got {number!r}")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError("AlignSAE: learning_rate should be positive and weight_decay not negative")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"AlignSAE: clip should be positive or None, got {self.clip!r}")

    @property
    def epochs(self) -> int:
        """Of both stages."""
        return self.stage_one + self.stage_two
