"""Who may be steered: known specs by id and name, and room for all that requests use at a time.

The engine's core decides here, before a request reaches the scheduler, and lets it wait there until there is room: the
worker, which must not fail amid a step, never meets a request that it cannot steer.
"""

import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sparsesteer.serving.limits import Limits
from sparsesteer.serving.windows import Window, windows
from sparsesteer.serving.wishes import Refusal, Wish, parse_wish, refusing, unknown_spec
from sparsesteer.specs import documents as spec_documents


@dataclass(frozen=True)
class Demand:
    """What a spec takes: its features in each bank that it uses, by the bank's index."""

    positions: Any  # as plain data
    strength: float
    features: Mapping[int, frozenset[int]]
    dose: float = 0.0  # at the spec's own strength


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


@dataclass(eq=False)
class Claim:
    """A live request's claim on its spec, which stays known, and has room once the request is seated."""

    steered: Steered
    seated: bool = False


class Admission:
    """Known specs and live requests; safe to use from several threads."""

    def __init__(self, capacity: Capacity, limits: Limits | None = None) -> None:
        self._capacity = capacity
        self._limits = limits or Limits()
        self._demands: dict[str, Demand] = {}
        self._names: dict[str, str] = {}
        self._live: Counter[str] = Counter()  # requests by spec
        self._seated: Counter[str] = Counter()  # those that have room
        self._rows: list[Counter[int]] = [Counter() for _ in capacity.banks]
        self._entries = [0 for _ in capacity.banks]
        self._left: deque[Claim] = deque()
        self._lock = threading.Lock()
        self._refusals: Counter[str] = Counter()

    def learn(self, spec_id: str, demand: Demand, name: str | None = None) -> None:
        """Make a spec known, and a name that from now on means it."""
        with self._open_books():
            self._demands[spec_id] = demand
            if name is not None:
                self._names[name] = spec_id

    def forget(self, spec_id: str) -> None:
        """Take a spec back. Raises KeyError if it is not known, ValueError while requests use it."""
        with self._open_books():
            if spec_id not in self._demands:
                raise KeyError(f"no spec {spec_id} is known")
            if self._live[spec_id]:
                raise ValueError(f"spec {spec_id} is in use by {self._live[spec_id]} requests; try again later")
            del self._demands[spec_id]
            self._names = {name: each for name, each in self._names.items() if each != spec_id}

    def enter(self, wish: Any, prompt_length: int) -> Claim:
        """Let a request in, to wait until it is seated.

        Raises:
            Refusal: not a wish, an unknown spec, too strong, positions outside of this prompt.
        """
        try:
            return self._enter(parse_wish(wish), prompt_length)
        except Refusal as refusal:
            self._refusals[refusal.reason] += 1
            raise

    def seat(self, claim: Claim) -> bool:
        """Hold room for a request's spec until it leaves; False as long as the specs of others leave none."""
        spec_id = claim.steered.id
        with self._open_books():
            if not claim.seated and (self._seated[spec_id] or self._has_room(self._demands[spec_id])):
                if not self._seated[spec_id]:
                    self._count(self._demands[spec_id], 1)
                self._seated[spec_id] += 1
                claim.seated = True
            return claim.seated

    def leave(self, claim: Claim) -> None:
        """A request has ended. The books are brought up to date by whoever opens them next.

        This is called when the garbage collector finds the request, which may be in the middle of anything.
        """
        self._left.append(claim)

    def status(self) -> dict[str, Any]:
        """Figures as plain data."""
        with self._open_books():
            return {
                "specs": len(self._demands),
                "in_use": len(self._seated),
                "requests": self._live.total(),
                "waiting": self._live.total() - self._seated.total(),
                "slots": self._capacity.slots,
                "refused": dict(self._refusals),
            }

    def known(self) -> dict[str, list[str]]:
        """The names of every known spec, by id."""
        with self._open_books():
            return {id_: sorted(n for n, each in self._names.items() if each == id_) for id_ in self._demands}

    @contextmanager
    def _open_books(self) -> Iterator[None]:
        with self._lock:
            while self._left:
                claim = self._left.popleft()
                spec_id = claim.steered.id
                _one_less(self._live, spec_id)
                if claim.seated:
                    _one_less(self._seated, spec_id)
                    if not self._seated[spec_id]:
                        self._count(self._demands[spec_id], -1)
            yield

    def _enter(self, wish: Wish, prompt_length: int) -> Claim:
        with self._open_books():
            spec_id = wish.name if wish.name in self._demands else self._names.get(wish.name)
            if spec_id is None:
                raise unknown_spec(wish.name)
            demand = self._demands[spec_id]
            strength = demand.strength * wish.strength
            with refusing("strength"):
                self._limits.check_strength(strength, f"{wish.name}@{wish.strength:g}")
                self._limits.check_dose(demand.dose * abs(wish.strength), f"{wish.name}@{wish.strength:g}")
            with refusing("positions"):
                places = windows(spec_documents.positions_of(demand.positions, "positions"), prompt_length)
            self._live[spec_id] += 1
        return Claim(Steered(spec_id, strength, places))

    def _has_room(self, demand: Demand) -> bool:
        if len(self._seated) >= self._capacity.slots:
            return False
        for index, features in demand.features.items():
            rows, entries = self._capacity.banks[index]
            fresh = sum(1 for feature in features if not self._rows[index][feature])
            if len(self._rows[index]) + fresh > rows or self._entries[index] + len(features) > entries:
                return False
        return True

    def _count(self, demand: Demand, sign: int) -> None:
        for index, features in demand.features.items():
            self._entries[index] += sign * len(features)
            for feature in features:
                if sign > 0:
                    self._rows[index][feature] += 1
                else:
                    _one_less(self._rows[index], feature)


def _one_less(counter: Counter, key: Any) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
