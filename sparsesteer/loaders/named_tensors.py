"""The tensors of one file by the names that its format gives them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsesteer.storage import StoredTensor
from sparsesteer.weights import Matrix, at_least_fp32


@dataclass(frozen=True)
class NamedTensors:
    """Tensors, in memory or in a file, and what to call their file in errors.

    Every method takes the names that a tensor has had in the life of its format; two of them at once are an error.
    """

    where: str
    tensors: Mapping[str, object]

    def has(self, *names: str) -> bool:
        """True if all of these are there."""
        return all(name in self.tensors for name in names)

    def find(self, *names: str) -> Matrix | None:
        """The tensor of one of these names, None if there is none."""
        present = [name for name in names if name in self.tensors]
        if len(present) > 1:
            raise ValueError(f"{self.where}: {' and '.join(present)} are two names of one thing, and both are there")
        if not present:
            return None
        tensor = self.tensors[present[0]]
        if not isinstance(tensor, Matrix):
            raise ValueError(f"{self.where}: {present[0]} should be a tensor, got {type(tensor).__name__}")
        return tensor

    def matrix(self, *names: str) -> Matrix:
        """A floating point matrix; left where it is."""
        tensor = self._required(names)
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise ValueError(f"{self.where}: {names[0]} should be a matrix, got shape {list(tensor.shape)}")
        self._check_floating(names[0], tensor)
        return tensor

    def vector(self, *names: str) -> Tensor:
        """A floating point vector in memory, in fp32 or fp64."""
        tensor = self._required(names)
        if len(tensor.shape) != 1:
            raise ValueError(f"{self.where}: {names[0]} should be a vector, got shape {list(tensor.shape)}")
        return self._loaded(names[0], tensor)

    def number(self, *names: str) -> float | int:
        """The value of a tensor without axes, floating point or whole."""
        tensor = self._required(names)
        if tuple(tensor.shape) not in ((), (1,)) or tensor.dtype == torch.bool:
            raise ValueError(f"{self.where}: {names[0]} should be a number, got shape {list(tensor.shape)}")
        return (tensor.load() if isinstance(tensor, StoredTensor) else tensor).item()

    def check_ones(self, name: str) -> None:
        """Raise ValueError if there is a factor of this name that changes anything."""
        tensor = self.find(name)
        if tensor is None:
            return
        factor = tensor.load() if isinstance(tensor, StoredTensor) else tensor
        if not torch.equal(factor, torch.ones_like(factor)):
            raise ValueError(f"{self.where}: {name} is not all ones; fold it into W_dec with sae_lens first")

    def _required(self, names: tuple[str, ...]) -> Matrix:
        tensor = self.find(*names)
        if tensor is None:
            known = ", ".join(sorted(self.tensors)) or "nothing"
            raise ValueError(f"{self.where}: {names[0]} is missing from the weights, which hold {known}")
        return tensor

    def _loaded(self, name: str, tensor: Matrix) -> Tensor:
        self._check_floating(name, tensor)
        return at_least_fp32(tensor.load() if isinstance(tensor, StoredTensor) else tensor)

    def _check_floating(self, name: str, tensor: Matrix) -> None:
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"{self.where}: {name} should be floating point, got {tensor.dtype}")
