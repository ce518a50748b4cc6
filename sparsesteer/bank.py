"""Many plans of one site in tables whose addresses never change: what a batch of differently steered tokens reads."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsesteer._layout import N_COLUMNS
from sparsesteer.edits import Edit
from sparsesteer.plans import SteeringPlan

if TYPE_CHECKING:
    from sparsesteer.sae import SAE

_RULES = ("input_norm", "scale_rule", "gap", "preserve_norm", "sae_digest")


class Bank:
    """Plans at one site, each in a slot; plans that edit the same feature share its encoder and decoder rows.

    Adding and removing writes into the tables in place, so that a CUDA graph that holds ``ops.steer_slots`` sees the
    change at its next replay. Not thread-safe: one thread adds and removes.

    Args:
        like: the SAE whose plans the bank shall hold, or one of the plans where they follow another rule than the
            SAE's own (gap-fill, preserve_norm, rows in bf16). It is not added.
        capacity: R, different features of all plans together.
        slots: S, plans at a time.
        entries: P, edited features summed over all plans, shared ones counted for each; 4 R if not given.

    Raises:
        ValueError: a plan that needs its whole SAE; sizes below 1.
    """

    def __init__(self, like: "SAE | SteeringPlan", *, capacity: int, slots: int, entries: int | None = None) -> None:
        plan = like if isinstance(like, SteeringPlan) else like.plan(Edit())
        entries = 4 * capacity if entries is None else entries
        for name, size in (("capacity", capacity), ("slots", slots), ("entries", entries)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"Bank: {name} should be a positive integer, got {size!r}")
        _check_row_plan(plan)
        self.input_norm, self.scale_rule = plan.input_norm, plan.scale_rule
        self.gap, self.preserve_norm = plan.gap, plan.preserve_norm
        self.sae_digest = plan.sae_digest
        new, table = plan.encoder.new_zeros, plan.rows.new_zeros
        self.encoder = new(capacity, plan.encoder.shape[1])  # [R, D]
        self.decoder = new(capacity, plan.decoder.shape[1])  # [R, D_out]
        self.slots = new(slots, 3, dtype=torch.int32)  # [S, 3]: first entry, number of entries, 1 for a bias
        self.entry_row = new(entries, dtype=torch.int32)  # [P]
        self.rows = table(entries, N_COLUMNS)  # [P, 10]
        self.slot_bias = table(slots, plan.decoder.shape[1])  # [S, D_out]
        self._row_of: dict[int, int] = {}  # feature: row
        self._users: dict[int, int] = {}  # feature: plans that edit it
        self._free_rows = list(range(capacity))[::-1]
        self._held: dict[int, tuple[range, list[int]]] = {}  # slot: its entries and features

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.encoder.device

    def __len__(self) -> int:
        """Plans that it holds."""
        return len(self._held)

    def __repr__(self) -> str:
        return (
            f"Bank(D={self.encoder.shape[1]}, {len(self)} of {len(self.slots)} slots, "
            f"{len(self._row_of)} of {len(self.encoder)} features)"
        )

    def add(self, plan: SteeringPlan, slot: int | None = None) -> int:
        """Put a plan into a free slot, or into the empty one that is named, and return the slot's number.

        Raises:
            ValueError: a plan of another SAE, site width or rule than the bank's; one whose rows of a feature are not
                those that the bank holds; a slot that holds a plan or does not exist.
            RuntimeError: no slot, feature row or run of entries is free; nothing was changed.
        """
        self.check_fits(plan)
        self._check_shared_rows(plan)
        features = plan.features.tolist()
        if slot is None:
            slot = next((s for s in range(len(self.slots)) if s not in self._held), None)
        elif slot in self._held or not 0 <= slot < len(self.slots):
            raise ValueError(f"Bank.add: slot {slot} is not an empty one of {len(self.slots)}")
        fresh = [f for f in features if f not in self._row_of]
        run = self._free_run(len(features))
        if slot is None:
            raise RuntimeError(f"Bank.add: all {len(self.slots)} slots are taken; remove a plan")
        if len(fresh) > len(self._free_rows):
            raise RuntimeError(
                f"Bank.add: {len(fresh)} more features do not fit, {len(self._free_rows)} of "
                f"{len(self.encoder)} rows are free; remove a plan or make the bank with a larger capacity"
            )
        if run is None:
            raise RuntimeError(
                f"Bank.add: no run of {len(features)} entries is free among {len(self.rows)}; "
                "remove a plan or make the bank with more entries"
            )
        for feature in fresh:
            self._row_of[feature] = self._free_rows.pop()
        self._write(slot, run, plan, fresh)
        for feature in features:
            self._users[feature] = self._users.get(feature, 0) + 1
        self._held[slot] = run, features
        return slot

    def remove(self, slot: int) -> None:
        """Free a slot; tokens that still name it are not steered. Raises KeyError for an empty slot."""
        if slot not in self._held:
            raise KeyError(f"Bank.remove: slot {slot} holds no plan; it has {sorted(self._held)}")
        self.slots[slot] = 0  # first of all: from here on no token finds the entries
        _, features = self._held.pop(slot)
        for feature in features:
            self._users[feature] -= 1
            if self._users[feature] == 0:
                del self._users[feature]
                self._free_rows.append(self._row_of.pop(feature))

    def _write(self, slot: int, run: range, plan: SteeringPlan, fresh: list[int]) -> None:
        place = {feature: i for i, feature in enumerate(plan.features.tolist())}
        picked = self._index([place[feature] for feature in fresh])
        rows = self._index([self._row_of[feature] for feature in fresh])
        self.encoder[rows], self.decoder[rows] = plan.encoder[picked], plan.decoder[picked]
        entries = slice(run.start, run.stop)
        self.entry_row[entries] = self._index([self._row_of[feature] for feature in place]).int()
        self.rows[entries] = plan.rows
        if plan.delta_bias is not None:
            self.slot_bias[slot] = plan.delta_bias
        # last of all: from here on tokens find the entries
        self.slots[slot] = self.slots.new_tensor([run.start, len(run), plan.delta_bias is not None])

    def _index(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def _free_run(self, length: int) -> range | None:
        """The first free run of entries."""
        start = 0
        for taken in sorted((run for run, _ in self._held.values() if len(run)), key=lambda run: run.start):
            if taken.start - start >= length:
                break
            start = taken.stop
        return range(start, start + length) if start + length <= len(self.rows) else None

    def check_fits(self, plan: SteeringPlan) -> None:
        """Raise ValueError for a plan of another SAE, site width or rule than the bank's."""
        _check_row_plan(plan)
        for name in _RULES:
            if getattr(plan, name) != getattr(self, name):
                raise ValueError(
                    f"Bank.add: the plan's {name} is {getattr(plan, name)}, the bank's {getattr(self, name)}; "
                    "plans of another rule or SAE need a bank of their own: Bank(plan, ...)"
                )
        for name in ("encoder", "decoder", "rows"):
            own, other = getattr(self, name), getattr(plan, name)
            if own.shape[1] != other.shape[1] or own.dtype != other.dtype or own.device != other.device:
                raise ValueError(
                    f"Bank.add: the plan's {name} is [M, {other.shape[1]}] of {other.dtype} on {other.device}, the "
                    f"bank's has width {own.shape[1]}, {own.dtype}, {own.device}; use plan.to(...) or another bank"
                )

    def _check_shared_rows(self, plan: SteeringPlan) -> None:
        shared = [(i, self._row_of[f]) for i, f in enumerate(plan.features.tolist()) if f in self._row_of]
        if not shared:
            return
        own, held = (self._index(list(numbers)) for numbers in zip(*shared, strict=True))
        same = (plan.encoder[own] == self.encoder[held]).all(1) & (plan.decoder[own] == self.decoder[held]).all(1)
        if not same.all():
            feature = int(plan.features[own[~same][0]])
            raise ValueError(
                f"Bank.add: the plan's rows of feature {feature} are not those that the bank holds of it; "
                "was the plan changed, or its SAE?"
            )


def _check_row_plan(plan: SteeringPlan) -> None:
    if plan.needs_sae:
        raise ValueError(
            "Bank: TopK and reconstruct plans need their whole SAE and fit no bank; "
            "sae.plan(edit, activation=ss.ReLU()) leaves TopK's mask out"
        )
