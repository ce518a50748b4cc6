"""A model's block whose output is steered from the banks at its place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsesteer.bank import Bank
from sparsesteer.serving.request_table import RequestTable
from sparsesteer.serving.token_map import TokenMap

_TABLES = ("slots", "encoder", "decoder", "entry_row", "rows", "slot_bias")


class BankReader(nn.Module):
    """One bank's tables and the token map as buffers: a compiled graph reads them at their addresses."""

    token_slot: Tensor
    token_strength: Tensor

    def __init__(self, bank: Bank, tokens: TokenMap | RequestTable) -> None:
        super().__init__()
        for name in _TABLES:
            self.register_buffer(name, getattr(bank, name), persistent=False)
        self.register_buffer("token_slot", tokens.slot, persistent=False)
        self.register_buffer("token_strength", tokens.strength, persistent=False)
        self.input_norm, self.scale_rule = int(bank.input_norm), int(bank.scale_rule)
        self.gap, self.preserve_norm = bank.gap, bank.preserve_norm

    def forward(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        """hidden [N, D], steered; the stream that is read is hidden + residual."""
        if residual is None or not self.preserve_norm:
            return self._steered(hidden, residual)
        # it is the stream whose length is kept, not that of the part which is written
        stream = hidden + residual
        steered = self._steered(stream, None)
        touched = (steered != stream).any(-1, keepdim=True)
        return torch.where(touched, steered - residual, hidden)

    def _steered(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        n = hidden.shape[0]
        return torch.ops.sparsesteer.steer_slots(
            hidden, hidden, residual, self.token_slot[:n], self.slots, self.encoder, self.decoder, self.entry_row,
            self.rows, self.slot_bias, self.token_strength[:n], 1.0,
            self.input_norm, self.scale_rule, self.gap, self.preserve_norm,
        )  # fmt: skip


def steer_block(
    block: nn.Module, banks: list[Bank], tokens: TokenMap | RequestTable, *, may_skip: bool = False
) -> None:
    """Make a block return its output steered; banks follow one another.

    The block's own ``forward`` is wrapped, before the model is compiled, so that the ops are a part of the graph.

    Args:
        may_skip: leave the ops out of a step in which no token is steered. Not where the step is kept, compiled or as a
            CUDA graph, for others in which some are.
    """
    readers = nn.ModuleList(BankReader(bank, tokens) for bank in banks)
    block.sparsesteer = readers
    block.forward = _steered(block.forward, readers, tokens, may_skip)


def _steered(
    forward: Callable[..., Any], readers: nn.ModuleList, tokens: TokenMap | RequestTable, may_skip: bool
) -> Callable[..., Any]:
    def steered_forward(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if may_skip and tokens.idle:
            return output
        hidden, residual = output if isinstance(output, tuple) else (output, None)
        for reader in readers:
            hidden = reader(hidden, residual)
        return (hidden, residual) if isinstance(output, tuple) else hidden

    return steered_forward
