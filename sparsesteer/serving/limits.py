"""How large a spec may be that comes from outside."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """

    spec_bytes: int = 256 << 20
    features: int = 65536
    strength: float = 100.0
    norm: float = math.inf

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

    def check_strength(self, strength: float, where: str) -> None:
        """Raise ValueError for a strength that is not finite or larger."""
        if not abs(strength) <= self.strength:
            raise ValueError(
                f"{where}: strength should be between -{self.strength:g} and {self.strength:g}, got {strength}"
            )
