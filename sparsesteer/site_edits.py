"""One plan at its place in a model: read x, write the edit."""

import threading
from contextlib import ExitStack

from torch import Tensor

from sparsesteer import ops
from sparsesteer.model import running_calls
from sparsesteer.model.places import Place
from sparsesteer.model.running_calls import RunningCall
from sparsesteer.plans import SteeringPlan


class SiteEdit:
    """A plan that reads at one place and writes there or, for a transcoder, at another one later in the same call."""

    def __init__(self, plan: SteeringPlan, read: Place, written: Place, reader: int) -> None:
        self.plan = plan
        self.read = read
        self.written = written
        self.reader = reader
        self.key = running_calls.new_key()
        self.thread: int | None = None

    def attach(self, hooks: ExitStack, thread: int | None) -> None:
        """Steer, in one thread or in all, until ``hooks`` is closed."""
        self.thread = thread
        if self.read is self.written:
            hooks.callback(self.written.attach(self.steer_at_one_place))
        else:
            hooks.callback(self.read.attach(self.keep))
            hooks.callback(self.written.attach(self.steer_with_kept))

    def steer_at_one_place(self, h: Tensor) -> Tensor:
        """h [..., D], steered."""
        call = self._call(self.written)
        return h if call is None else self._steered(h, None, call)

    def keep(self, x: Tensor) -> Tensor:
        """Keep x for the place of writing; a copy, since the model may write over it."""
        call = self._call(self.read)
        if call is not None:
            call.read[self.key] = x.clone()
        return x

    def steer_with_kept(self, w: Tensor) -> Tensor:
        """w [..., D_out], steered by the x that was kept."""
        call = self._call(self.written)
        if call is None:
            return w
        x = call.read.get(self.key)
        if x is None:
            raise RuntimeError(
                f"steer: the plan writes at {self.written.path} before its place of reading, {self.read.path}, has "
                "run in this call; are hook_name and hook_name_out in the right order?"
            )
        return self._steered(x.to(w.device), w, call)

    def _call(self, place: Place) -> RunningCall | None:
        """The call that runs; None where it is none of ours."""
        call = running_calls.current(self.reader)
        if (call is None or call.strength is None) and self.thread in (None, threading.get_ident()):
            raise RuntimeError(
                f"steer: {place.path} ran outside the model whose calls show its tokens, or before they are known; "
                "call the model that was given to ss.steer"
            )
        return call

    def _steered(self, x: Tensor, into: Tensor | None, call: RunningCall) -> Tensor:
        w = x if into is None else into
        strength = call.strength
        if isinstance(strength, Tensor):
            strength = strength.to(w.device)
        elif strength is None or strength == 0:
            return w
        if self.plan.device != w.device:
            self.plan = self.plan.to(w.device)
        if x.dim() < 4 and w.dim() < 4:
            return ops.steer(x, self.plan, strength, into=into)
        # TransformerLens shows heads, [B, T, heads, d_head]; an SAE reads them all at once
        return ops.steer(x.flatten(2), self.plan, strength, into=w.flatten(2)).view(w.shape)
