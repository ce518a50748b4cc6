"""What a study decides before anything is answered."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """What is decided before anything is answered.

    Attributes:
        kinds: of the demonstrations that every prompt begins with: which context and which answer, substituted (s) or
            original (o); none of them is a prompt without demonstrations.
        fit_seeds, dev_seeds, test_seeds: each draws demonstrations.
        spread: each conflict is asked behind the demonstrations of one seed, in turn; else behind those of every seed.
        n_fit, n_dev, n_test: how many conflicts of a split are asked at most, drawn by ``draw``.
        draw: seed of that.
        max_new_tokens: of an answer.
        budget: settings that each method may try on dev, for each direction.
        in_context: an answer counts for the context wherever it stands in it, as for Macnoise.
    """

    kinds: tuple[str, ...] = ("ss", "so", "ss", "so")
    fit_seeds: tuple[int, ...] = (11, 12, 13)
    dev_seeds: tuple[int, ...] = (21, 22)
    test_seeds: tuple[int, ...] = (42, 43, 44, 45, 46)
    spread: bool = False
    n_fit: int = 200
    n_dev: int = 100
    n_test: int = 400
    draw: int = 42
    max_new_tokens: int = 12
    budget: int = 12
    in_context: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Protocol":
        """From plain data. Raises ValueError for another name, or a number that is not positive."""
        unknown = sorted(set(given) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"a study has no {unknown[0]}; it has {', '.join(cls.__dataclass_fields__)}")
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        found = cls(**plain)
        for name in ("n_fit", "n_dev", "n_test", "max_new_tokens", "budget"):
            if getattr(found, name) < 1:
                raise ValueError(f"{name} should be a positive whole number, got {getattr(found, name)!r}")
        for name in ("fit_seeds", "dev_seeds", "test_seeds"):
            if not getattr(found, name):
                raise ValueError(f"{name} should not be empty")
        return found
