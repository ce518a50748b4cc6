"""Tensors as the kernels take them."""

from typing import overload

import torch
from torch import Tensor


@overload
def matrix(tensor: Tensor) -> tuple[Tensor, int]: ...


@overload
def matrix(tensor: Tensor | None) -> tuple[Tensor | None, int]: ...


def matrix(tensor: Tensor | None) -> tuple[Tensor | None, int]:
    """A matrix whose rows have unit stride, copied if it must be, and the stride between rows."""
    if tensor is None:
        return None, 0
    if tensor.shape[1] > 1 and tensor.stride(1) != 1:
        tensor = tensor.contiguous()
    return tensor, tensor.stride(0)


def weights(tensor: Tensor) -> Tensor:
    """Rows as the kernels multiply them: bf16 as they are, all else in fp32."""
    return tensor if tensor.dtype == torch.bfloat16 else tensor.float()
