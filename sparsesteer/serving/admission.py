"""Who may be steered: known specs by id and name, and room for all that live requests use.

The engine's core decides here, before a request reaches the scheduler, so that the worker, which must not fail amid a
step, never meets a request that it cannot steer.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsesteer.serving.limits import Limits
from sparsesteer.serving.windows import Window, windows
from sparsesteer.serving.wishes import parse_wish
from sparsesteer.specs import documents as spec_documents


@dataclass(frozen=True)
class Demand:
    """What a spec takes: its features in each bank that it uses, by the bank's index."""

    positions: Any  # as plain data
    strength: float
    features: Mapping[int, frozenset[int]]


@dataclass(frozen=True)
class Capacity:
    """Specs at a time, and in each bank the rows for different features and the entries for all."""

    slots: int
    banks: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Steered:
    """A request that was let in; plain data, for it travels from the core to the workers."""

    id: str
    strength: float
    windows: tuple[Window, ...]

    def document(self) -> dict[str, Any]:
        """As plain data, in place of what the request asked for."""
        return {"id": self.id, "strength": self.strength, "windows": [list(window) for window in self.windows]}

    @classmethod
    def of(cls, document: Any) -> "Steered | None":
        """Back from plain data; None for anything else."""
        if not isinstance(document, dict):
            return None
        return cls(document["id"], document["strength"], tuple((a, b) for a, b in document["windows"]))


class Admission:
    """Known specs and live requests; safe to use from several threads."""

    def __init__(self, capacity: Capacity, limits: Limits | None = None) -> None:
        self._capacity = capacity
        self._limits = limits or Limits()
        self._demands: dict[str, Demand] = {}
        self._names: dict[str, str] = {}
        self._users: Counter[str] = Counter()
        self._rows: list[Counter[int]] = [Counter() for _ in capacity.banks]
        self._entries = [0 for _ in capacity.banks]
        self._lock = threading.Lock()
        self.refused = 0

    def learn(self, spec_id: str, demand: Demand, name: str | None = None) -> None:
        """Make a spec known, and a name that from now on means it."""
        with self._lock:
            self._demands[spec_id] = demand
            if name is not None:
                self._names[name] = spec_id

    def forget(self, spec_id: str) -> None:
        """Take a spec back. Raises KeyError if it is not known, ValueError while requests use it."""
        with self._lock:
            if spec_id not in self._demands:
                raise KeyError(f"no spec {spec_id} is known")
            if self._users[spec_id]:
                raise ValueError(f"spec {spec_id} is in use by {self._users[spec_id]} requests; try again later")
            del self._demands[spec_id]
            self._names = {name: each for name, each in self._names.items() if each != spec_id}

    def meant(self, name: str) -> str:
        """The id that a name or an id means. Raises KeyError for an unknown one."""
        spec_id = name if name in self._demands else self._names.get(name)
        if spec_id is None:
            raise KeyError(f"no spec {name!r} is known; GET /v1/sparsesteer/specs lists them")
        return spec_id

    def enter(self, wish: Any, prompt_length: int) -> Steered:
        """Let a request in and hold room for its spec until ``leave``.

        Raises:
            ValueError: not a wish, too strong, positions outside of this prompt.
            KeyError: an unknown spec.
            RuntimeError: live requests leave no room for the spec.
        """
        try:
            return self._enter(wish, prompt_length)
        except (ValueError, KeyError, RuntimeError):
            self.refused += 1
            raise

    def leave(self, spec_id: str) -> None:
        """A request has ended."""
        with self._lock:
            self._users[spec_id] -= 1
            if self._users[spec_id] == 0:
                del self._users[spec_id]
                self._count(self._demands[spec_id], -1)

    def status(self) -> dict[str, Any]:
        """Figures as plain data."""
        with self._lock:
            return {
                "specs": len(self._demands),
                "in_use": len(self._users),
                "requests": sum(self._users.values()),
                "slots": self._capacity.slots,
                "refused": self.refused,
            }

    def known(self) -> dict[str, list[str]]:
        """The names of every known spec, by id."""
        with self._lock:
            return {id_: sorted(n for n, each in self._names.items() if each == id_) for id_ in self._demands}

    def _enter(self, value: Any, prompt_length: int) -> Steered:
        wish = parse_wish(value)
        with self._lock:
            spec_id = self.meant(wish.name)
            demand = self._demands[spec_id]
            strength = demand.strength * wish.strength
            self._limits.check_strength(strength, f"{wish.name}@{wish.strength:g}")
            positions = spec_documents.positions_of(demand.positions, "positions")
            steered = Steered(spec_id, strength, windows(positions, prompt_length))
            if spec_id not in self._users:
                self._check_room(demand)
                self._count(demand, 1)
            self._users[spec_id] += 1
        return steered

    def _check_room(self, demand: Demand) -> None:
        if len(self._users) >= self._capacity.slots:
            raise RuntimeError(f"all {self._capacity.slots} slots are in use by other specs; try again later")
        for index, features in demand.features.items():
            rows, entries = self._capacity.banks[index]
            fresh = sum(1 for feature in features if not self._rows[index][feature])
            taken = sum(1 for count in self._rows[index].values() if count)
            if taken + fresh > rows or self._entries[index] + len(features) > entries:
                raise RuntimeError(
                    f"the specs in use leave room for {rows - taken} features and {entries - self._entries[index]} "
                    f"entries, this one takes {fresh} and {len(features)}; try again later"
                )

    def _count(self, demand: Demand, sign: int) -> None:
        for index, features in demand.features.items():
            self._entries[index] += sign * len(features)
            for feature in features:
                self._rows[index][feature] += sign
                if not self._rows[index][feature]:
                    del self._rows[index][feature]
