"""What one forward call adds to a recording, on its way to the CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsesteer.model.forward_calls import ForwardCall
from sparsesteer.recording.recording import NO_TOKEN, Entries


class RecordedCall:
    """The new tokens of a call: rectangles [B, T] that were sent to the CPU, perhaps without having arrived."""

    def __init__(
        self,
        call: ForwardCall,
        rows: Sequence[int],  # [B], the number of each row's sequence
        first_new: int,  # columns before it are known already
        before: Sequence[Tensor],  # [..., M] for each site
        after: Sequence[Tensor],
        order: Sequence[int] | None,  # the columns of all sites together, None if they stand right
    ) -> None:
        shape, new = call.shape, slice(first_new, None)
        about_tokens = [
            torch.full(shape, NO_TOKEN) if call.ids is None else call.ids.detach().long(),
            torch.tensor(rows)[:, None].expand(shape),
            call.ranks.expand(shape),
            (~call.in_prompt).expand(shape),
            torch.ones(shape, dtype=torch.bool) if call.valid is None else call.valid,
        ]
        activations = [each.view(*shape, each.shape[-1]) for each in (*before, *after)]
        sent = [each[:, new] for each in (*about_tokens, *activations)]
        self.size = sent[0].numel()
        self._sent = [_on_cpu(each) for each in sent]
        self._copies = [_marked(device) for device in {each.device for each in sent} if device.type == "cuda"]
        self._n_sites, self._order = len(before), order

    def finished(self) -> Entries:
        """The real tokens, row after row; waits until all of them are there."""
        for copy in self._copies:
            copy.synchronize()
        tokens, sequences, positions, generated, real, *activations = (each.flatten(0, 1) for each in self._sent)
        before, after = (torch.cat(part, -1) for part in (activations[: self._n_sites], activations[self._n_sites :]))
        entries = Entries(tokens, sequences, positions, generated, before, after).pick(real)
        return entries if self._order is None else entries.columns(list(self._order))


def call_of(call: ForwardCall | None, f: Tensor, path: str) -> ForwardCall:
    """The call whose tokens f [..., M] belongs to; one that shows no ids where the model was given none.

    Raises:
        RuntimeError: the place did not see every token of the call.
    """
    if call is None or (call.tokens.is_floating_point() and call.tokens.dim() == 2):  # [T, D] is no batch
        n_rows = f.shape[0] if f.dim() > 2 else 1
        unknown = torch.full((n_rows, f.shape[:-1].numel() // max(1, n_rows)), NO_TOKEN)
        return ForwardCall(unknown, None, n_prompt=unknown.shape[1])
    if f.shape[:-1].numel() != call.shape[0] * call.shape[1]:
        raise RuntimeError(
            f"record: {path} saw {list(f.shape[:-1])} tokens in a call of {list(call.shape)}; only places that see "
            "every token can be recorded"
        )
    return call


def _on_cpu(tensor: Tensor) -> Tensor:
    """A copy; from a GPU it arrives later."""
    return tensor.to("cpu", non_blocking=True) if tensor.device.type == "cuda" else tensor.to("cpu", copy=True)


def _marked(device: torch.device) -> torch.cuda.Event:
    """An event behind all that the device has been told to do."""
    with torch.cuda.device(device):
        event = torch.cuda.Event()
        event.record()
    return event
