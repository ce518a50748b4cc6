"""How large a spec may be that comes from outside."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparsesteer.serving.doses import dose_of

if TYPE_CHECKING:
    from sparsesteer.serving.served_spec import ServedSpec


@dataclass(frozen=True)
class Limits:
    """The most that a server takes.

    Args:
        spec_bytes: of a spec's file.
        features: edited features of a spec, all sites together.
        strength: of a request, times the spec's own, positive or negative.
        norm: of a constant direction, in units of the stream; infinite if not given.
        dose: of what a request adds whatever the token, by set, add and floor, in norms of the stream; infinite if not
            given.
        stream_norm: of the residual stream, by block, which ``dose`` needs.
    """

    spec_bytes: int = 256 << 20
    features: int = 65536
    strength: float = 100.0
    norm: float = math.inf
    dose: float = math.inf
    stream_norm: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            norms = {int(block): float(norm) for block, norm in self.stream_norm.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError("limits: stream_norm should be norms by block, {16: 40.0}") from error
        if not all(0 < norm < math.inf for norm in norms.values()):
            raise ValueError(f"limits: norms of the stream should be positive and finite, got {norms}")
        object.__setattr__(self, "stream_norm", norms)

    def check_size(self, n_bytes: int, where: str) -> None:
        """Raise ValueError for a file of more bytes."""
        if n_bytes > self.spec_bytes:
            raise ValueError(f"{where} has {n_bytes} bytes, at most {self.spec_bytes} are taken")

    def check(self, spec: "ServedSpec", where: str) -> None:
        """Raise ValueError for a spec of more features, strength or norm."""
        plans = spec.plans.values()  # type: ignore[union-attr]
        features = sum(len(plan) + plan.constant_features.numel() for plan in plans)
        if features > self.features:
            raise ValueError(f"{where} edits {features} features, at most {self.features} are taken")
        self.check_strength(spec.strength, where)
        for plan in plans:
            norm = 0.0 if plan.delta_bias is None else float(plan.delta_bias.norm())
            if not norm * abs(spec.strength) <= self.norm:
                raise ValueError(f"{where} adds a direction of norm {norm:g}, at most {self.norm:g} is taken")

        self.check_dose(self.dose_of(spec, where), where)

    def dose_of(self, spec: "ServedSpec", where: str = "the spec") -> float:
        """A spec's dose at its own strength; 0 where doses are not limited. Raises ValueError as ``doses.dose_of``."""
        return 0.0 if self.dose == math.inf else dose_of(spec, self.stream_norm, where)

    def check_dose(self, dose: float, where: str) -> None:
        """Raise ValueError for one that is larger."""
        if not dose <= self.dose:
            raise ValueError(
                f"{where} adds {dose:.3g} times the norm of the stream, at most {self.dose:.3g} is taken; lower its "
                "values or its strength"
            )

    def check_strength(self, strength: float, where: str) -> None:
        """Raise ValueError for a strength that is not finite or larger."""
        if not abs(strength) <= self.strength:
            raise ValueError(
                f"{where}: strength should be between -{self.strength:g} and {self.strength:g}, got {strength}"
            )
