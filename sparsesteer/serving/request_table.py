"""The slot and the strength of every token of a step, found on the device: what a runner needs that knows its batch
only there.

A row of the table is a request's, by the runner's own index. It is written when the request comes; a step costs a few
operations on tensors, whose sizes the host knows, and waits for nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsesteer.serving.admission import Steered
from sparsesteer.serving.token_map import NO_SLOT
from sparsesteer.serving.windows import END


class Row(NamedTuple):
    """What is known of a request."""

    slot: int
    steered: Steered


class RequestTable:
    """As ``TokenMap``, two tensors at fixed addresses, [max_tokens]: int32 slots, -1 for none, and fp32 strengths."""

    idle = False  # what a batch holds is known on the device alone

    def __init__(self, max_tokens: int, max_requests: int, device: torch.device) -> None:
        self.slot = torch.full((max_tokens,), NO_SLOT, dtype=torch.int32, device=device)
        self.strength = torch.zeros(max_tokens, dtype=torch.float32, device=device)
        self._token = torch.arange(max_tokens, dtype=torch.int32, device=device)
        self._slots = torch.full((max_requests,), NO_SLOT, dtype=torch.int32, device=device)
        self._strengths = torch.zeros(max_requests, dtype=torch.float32, device=device)
        # the first and the last place of every window, in rising order: a token is steered if an odd number lies at or
        # before it
        self._edges = torch.full((max_requests, 2), END, dtype=torch.int64, device=device)
        self._n_steered = torch.zeros((), dtype=torch.int64, device=device)
        self._staged: dict[int, Row | None] = {}
        self._live: set[int] = set()
        self._written = 0

    @property
    def steered_tokens(self) -> int:
        """Since the start; waits for the device."""
        return int(self._n_steered)

    def stage(self, index: int, row: Row | None) -> None:
        """What a request asks for, None if it is not steered; read from ``apply`` on."""
        self._staged[index] = row if row is not None and row.steered.windows else None

    def drop(self, index: int) -> None:
        """The request has ended; no batch has this index until it is staged again."""
        self._staged.pop(index, None)
        self._live.discard(index)

    def apply(self) -> None:
        """Write the staged rows, all by one copy a column."""
        staged, self._staged = self._staged, {}
        if not staged:
            return
        self._live -= staged.keys()
        self._live |= {index for index, row in staged.items() if row is not None}
        edges = _edges(staged, self._edges.shape[1])
        if edges.shape[1] > self._edges.shape[1]:
            more = self._edges.new_full((len(self._edges), edges.shape[1] - self._edges.shape[1]), END)
            self._edges = torch.cat([self._edges, more], dim=1)
        index = self._sent(np.fromiter(staged, np.int64))
        slots = [NO_SLOT if row is None else row.slot for row in staged.values()]
        strengths = [0.0 if row is None else row.steered.strength for row in staged.values()]
        self._slots[index] = self._sent(np.array(slots, np.int32))
        self._strengths[index] = self._sent(np.array(strengths, np.float32))
        self._edges[index] = self._sent(edges)

    def fill(self, request: Tensor, starts: Tensor, positions: Tensor) -> None:
        """Write the map of a step.

        Args:
            request: [B], the index of each request of the batch.
            starts: int32 [B + 1], where the tokens of each begin, and where the last ones end.
            positions: [N], each token's place in its sequence; those behind the last request's are padding.
        """
        n = len(positions)
        if self._live:
            row = torch.searchsorted(starts[1:], self._token[:n], right=True).clamp_(max=len(request) - 1)
            index = request[row]
            behind = (self._edges[index] <= positions[:, None]).sum(1)
            chosen = (behind % 2 == 1) & (self._slots[index] != NO_SLOT) & (self._token[:n] < starts[-1])
            self.slot[:n] = torch.where(chosen, self._slots[index], NO_SLOT)
            self.strength[:n] = self._strengths[index]
            self._n_steered += chosen.sum()
        elif self._written:
            self.slot[:n] = NO_SLOT
        self.slot[n : max(n, self._written)] = NO_SLOT
        self._written = n if self._live else 0

    def _sent(self, array: np.ndarray) -> Tensor:
        """On the device. Pinned memory is not used again before it has been read; the allocator sees to that."""
        tensor = torch.from_numpy(array)
        if self.slot.device.type == "cuda":
            return tensor.pin_memory().to(self.slot.device, non_blocking=True)
        return tensor.to(self.slot.device)


def _edges(rows: Mapping[int, Row | None], at_least: int) -> np.ndarray:
    """[rows, edges], filled up with places behind every sequence."""
    flat = [
        [] if row is None else [place for window in row.steered.windows for place in window] for row in rows.values()
    ]
    edges = np.full((len(flat), max(at_least, *map(len, flat), 0)), END, np.int64)
    for row, places in enumerate(flat):
        edges[row, : len(places)] = places
    return edges
