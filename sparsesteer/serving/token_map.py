"""The slot and the strength of every token of a step."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from sparsesteer.serving.admission import Steered

NO_SLOT = -1


class TokenMap:
    """Two tensors at fixed addresses, [max_tokens]: int32 slots, -1 for none, and fp32 strengths.

    A row of a batch is a request; what it asks for is written once, when the batch changes. A step in which nobody is
    steered costs two comparisons, any other a few operations on arrays, whatever the number of specs.
    """

    def __init__(self, max_tokens: int, max_requests: int, device: torch.device) -> None:
        self.slot = torch.full((max_tokens,), NO_SLOT, dtype=torch.int32, device=device)
        self.strength = torch.zeros(max_tokens, dtype=torch.float32, device=device)
        on_cpu = device.type == "cpu"
        self._host_slot = self.slot if on_cpu else torch.full((max_tokens,), NO_SLOT, dtype=torch.int32).pin_memory()
        self._host_strength = self.strength if on_cpu else torch.zeros(max_tokens).pin_memory()
        self._slot_view, self._strength_view = self._host_slot.numpy(), self._host_strength.numpy()
        self._slots = np.full(max_requests, NO_SLOT, np.int32)
        self._strengths = np.zeros(max_requests, np.float32)
        self._first = np.zeros(max_requests, np.int64)  # both 0 in the row of a request that is not steered
        self._last = np.zeros(max_requests, np.int64)
        self._steered_rows = 0
        self._scattered: dict[int, Steered] = {}  # rows with several windows
        self._ids: list[str] = []
        self._written = 0  # tokens that the tensors name from the step before
        self.steered_tokens = 0

    @property
    def idle(self) -> bool:
        """True if the tensors steer no token."""
        return self._written == 0

    def set_rows(self, ids: Sequence[str], of: Callable[[str], tuple[int, Steered] | None]) -> None:
        """The requests of this step, in their order; ``of`` gives slot and wish of one, None if it is not steered."""
        if ids == self._ids:
            return
        self._ids = list(ids)
        self._scattered = {}
        self._steered_rows = 0
        for row, request in enumerate(ids):
            found = of(request)
            self._slots[row], self._first[row], self._last[row] = NO_SLOT, 0, 0
            if found is not None and found[1].windows:
                slot, steered = found
                self._steered_rows += 1
                self._slots[row], self._strengths[row] = slot, steered.strength
                self._first[row], self._last[row] = steered.windows[0][0], steered.windows[-1][1]
                if len(steered.windows) > 1:
                    self._scattered[row] = steered

    def invalidate(self) -> None:
        """Read the rows anew in the next step, though the requests be the same."""
        self._ids = []

    def fill(self, n_scheduled: np.ndarray, n_computed: np.ndarray) -> None:
        """Write the map of a step: row i brings ``n_scheduled[i]`` tokens behind ``n_computed[i]``."""
        if not self._steered_rows:
            self._clear()
            return
        n_rows = len(n_scheduled)
        slots, strengths, first, last = (
            each[:n_rows] for each in (self._slots, self._strengths, self._first, self._last)
        )
        row, place = np.arange(n_rows), n_computed
        if not (n_scheduled == 1).all():
            row = np.repeat(row, n_scheduled)
            starts = np.cumsum(n_scheduled) - n_scheduled
            place = np.arange(len(row)) + (n_computed - starts)[row]
            slots, strengths, first, last = (each[row] for each in (slots, strengths, first, last))
        chosen = (place >= first) & (place < last)
        for scattered, steered in self._scattered.items():
            own = np.flatnonzero(row == scattered)
            inside = [(place[own] >= start) & (place[own] < stop) for start, stop in steered.windows]
            chosen[own] = np.any(inside, axis=0)
        self._write(np.where(chosen, slots, NO_SLOT), strengths, int(np.count_nonzero(chosen)))

    def _write(self, slots: np.ndarray, strengths: np.ndarray, n_steered: int) -> None:
        if not n_steered:
            self._clear()
            return
        n, before = len(slots), self._written
        self._slot_view[:n] = slots
        self._strength_view[:n] = strengths
        self._slot_view[n:before] = NO_SLOT
        self._send(max(n, before))
        self._written = n
        self.steered_tokens += n_steered

    def _clear(self) -> None:
        """A step in which nobody is steered costs a copy only after one in which somebody was."""
        if self._written:
            self._slot_view[: self._written] = NO_SLOT
            self._send(self._written)
            self._written = 0

    def _send(self, n: int) -> None:
        if self._host_slot is not self.slot:
            self.slot[:n].copy_(self._host_slot[:n], non_blocking=True)
            self.strength[:n].copy_(self._host_strength[:n], non_blocking=True)
