"""Which specs lie in the banks at this moment: slots by use, the least recently used making room."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsesteer.bank import Bank
from sparsesteer.plans import SteeringPlan
from sparsesteer.serving.served_spec import ServedSpec


@dataclass(frozen=True)
class SiteBank:
    """A bank and the number of the block after which it steers."""

    block: int
    bank: Bank


class NoRoom(RuntimeError):
    """The specs in use leave no room for another one."""


class Residency:
    """Specs in the same slot of every bank, as long as requests use them and until others need the room.

    What is in use always fits if its features and entries do by number: where only their order is in the way, the
    banks are packed anew. Not thread-safe.
    """

    def __init__(self, banks: Sequence[SiteBank], slots: int) -> None:
        self.banks = list(banks)
        self._free = list(range(slots))[::-1]
        self._slot: dict[str, int] = {}  # by id, the longest unused first
        self._users: dict[str, int] = {}
        self._parts: dict[str, list[tuple[Bank, SteeringPlan]]] = {}
        self.loads = 0
        self.evictions = 0

    def __len__(self) -> int:
        """Specs that lie in the banks."""
        return len(self._slot)

    @property
    def in_use(self) -> int:
        """Specs that requests use."""
        return len(self._users)

    def placed(self, spec: ServedSpec) -> list[int]:
        """The bank of each of a spec's plans, by index, the plans in the order of their blocks.

        Raises:
            ValueError: a place without a bank, or a plan of another SAE or rule than its banks', or a larger one.
        """
        return [self._bank_for(block, plan) for block, plan in sorted(spec.by_block().items())]

    def acquire(self, spec_id: str, spec: ServedSpec) -> int:
        """The slot of a spec, which stays until it is released as often.

        Raises:
            NoRoom: the specs in use leave none.
            ValueError: as ``placed``, or rows of a feature that differ from those in the bank.
        """
        if spec_id in self._slot:
            slot = self._slot.pop(spec_id)
        else:
            plans = [plan for _, plan in sorted(spec.by_block().items())]
            banks = [self.banks[index].bank for index in self.placed(spec)]
            parts = [(bank, _as_of(bank, plan).to(bank.device)) for bank, plan in zip(banks, plans, strict=True)]
            slot = self._take_slot()
            try:
                self._load(slot, parts)
            except BaseException:
                self._free.append(slot)
                raise
            self._parts[spec_id] = parts
            self.loads += 1
        self._slot[spec_id] = slot
        self._users[spec_id] = self._users.get(spec_id, 0) + 1
        return slot

    def release(self, spec_id: str) -> None:
        """One use less; the spec stays in its slot until the room is needed."""
        self._users[spec_id] -= 1
        if self._users[spec_id] == 0:
            del self._users[spec_id]
            self._slot[spec_id] = self._slot.pop(spec_id)

    def drop(self, spec_id: str) -> None:
        """Forget a spec that nobody uses; nothing happens to others."""
        if spec_id in self._slot and spec_id not in self._users:
            self._unload(spec_id)

    def _take_slot(self) -> int:
        if not self._free and not self._evict():
            raise NoRoom(f"all {len(self._slot)} slots hold specs in use")
        return self._free.pop()

    def _evict(self) -> bool:
        oldest = next((spec_id for spec_id in self._slot if spec_id not in self._users), None)
        if oldest is None:
            return False
        self._unload(oldest)
        self.evictions += 1
        return True

    def _unload(self, spec_id: str) -> None:
        slot = self._slot.pop(spec_id)
        for bank, _ in self._parts.pop(spec_id):
            bank.remove(slot)
        self._free.append(slot)

    def _load(self, slot: int, parts: list[tuple[Bank, SteeringPlan]]) -> None:
        while not _add_all(slot, parts):
            if self._evict():
                continue
            self._pack()
            if not _add_all(slot, parts):
                raise NoRoom("the specs in use leave no feature rows or entries for another one")
            return

    def _pack(self) -> None:
        """Take everything out and put it in again, so that all free entries lie together."""
        for spec_id, slot in self._slot.items():
            for bank, _ in self._parts[spec_id]:
                bank.remove(slot)
        for spec_id, slot in self._slot.items():
            for bank, plan in self._parts[spec_id]:
                bank.add(plan, slot)

    def _bank_for(self, block: int, plan: SteeringPlan) -> int:
        here = [(index, each.bank) for index, each in enumerate(self.banks) if each.block == block]
        if not here:
            blocks = sorted({each.block for each in self.banks})
            raise ValueError(f"no site was declared after block {block} when the server started; there are {blocks}")
        reasons = []
        for index, bank in here:
            try:
                bank.check_fits(_as_of(bank, plan).to(bank.device))
            except ValueError as error:
                reasons.append(str(error))
                continue
            if len(plan) <= min(len(bank.encoder), len(bank.rows)):
                return index
            reasons.append(f"the plan edits {len(plan)} features, the site's bank has {len(bank.encoder)} rows")
        raise ValueError(f"the plan after block {block} fits no bank there: {'; '.join(reasons)}")


def _add_all(slot: int, parts: list[tuple[Bank, SteeringPlan]]) -> bool:
    """Put every part into the slot, or none if one of them finds no room."""
    done: list[Bank] = []
    try:
        for bank, plan in parts:
            bank.add(plan, slot)
            done.append(bank)
    except BaseException as error:
        for bank in done:
            bank.remove(slot)
        if isinstance(error, RuntimeError):
            return False
        raise
    return True


def _as_of(bank: Bank, plan: SteeringPlan) -> SteeringPlan:
    """A plan in the dtype of the bank; one that encodes nothing, a constant direction, as if of the bank's SAE."""
    plan = plan.to(dtype=bank.encoder.dtype)
    if len(plan):
        return plan
    return replace(plan, sae_digest=bank.sae_digest, input_norm=bank.input_norm)
