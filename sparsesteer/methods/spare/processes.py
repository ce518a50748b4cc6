"""Several processes, as ``torchrun`` or ``accelerate launch`` start them, that share one work."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """This process's number, from 0 on, and how many there are."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """Those of torch.distributed's default group.

        Raises:
            RuntimeError: there are several, and they do not know of each other yet.
        """
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        count = os.environ.get("WORLD_SIZE", "1")
        if count not in ("", "1"):
            raise RuntimeError(
                f"SPARE: this is one of {count} processes, which would all do the same; before fit call "
                "torch.distributed.init_process_group('gloo') or accelerate.PartialState(), or unset WORLD_SIZE"
            )
        return cls()

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that are this process's to do."""
        return items[self.rank :: self.count]

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            dist.barrier()

    def by_first(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives in the first process, in all of them; what it raises is raised in all of them."""
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:  # the others wait, and should not do so in vain
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]
