"""A plain torch hook on a block, the way everybody writes it: what this package is compared with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Transform = Callable[[Tensor], Tensor]


@contextmanager
def transformed(block: nn.Module, transform: Transform) -> Iterator[None]:
    """A plain torch hook that replaces a block's hidden states [..., D]."""

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (transform(output[0]), *output[1:])
        return transform(output)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
