"""What ``torch.save`` wrote down about a dictionary of tensors, read as text: no object is made, no function called.

``torch.load(weights_only=True)`` is safe too, but it reads whole tensors. Here a pickle is a list of instructions that
say where tensors lie; instructions that would call or build anything but tensors are refused by name.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class PickledStorage:
    """A run of numbers in the archive's member ``data/{key}``."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class PickledTensor:
    """A view of a storage, in elements."""

    storage: PickledStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A function or class, by name only."""

    text: str


_MARK = object()


def read_pickle(data: bytes) -> dict:
    """The dictionary that a pickle describes, its tensors as ``PickledTensor``.

    Raises:
        ValueError: no pickle, no dictionary, a key that stands twice, anything but numbers, texts, containers and
            tensors.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"the pickle is damaged ({type(error).__name__}: {error})") from error
    if len(machine.stack) != 1 or not isinstance(machine.stack[0], dict):
        raise ValueError("the pickle does not hold a dictionary of tensors")
    return machine.stack[0]


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(argument)
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in _NOTHING:
            raise ValueError(f"the pickle has the instruction {name}, which no dictionary of tensors needs")

    def above_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def popped(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def remember(self, key: int | None) -> None:
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def add_items(self, pairs: list[Any]) -> None:
        _insert(self.stack[-1], pairs)

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError("only a list can be extended")
        self.stack[-1].extend(values)

    def call(self) -> None:
        function, arguments = self.popped(2)
        self.stack.append(_call(function, arguments))

    def set_state(self) -> None:
        self.stack.pop()  # of an OrderedDict: the versions of modules
        if not isinstance(self.stack[-1], dict):
            raise ValueError("the pickle sets the state of an object")


def _insert(target: Any, pairs: list[Any]) -> None:
    if not isinstance(target, dict) or len(pairs) % 2:
        raise TypeError("only a dictionary takes pairs")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if type(key) not in (str, int):
            raise TypeError(f"a key is of type {type(key).__name__}")
        if key in target:
            raise ValueError(f"the key {key!r} stands in it twice")
        target[key] = value


def _call(function: Any, arguments: Any) -> Any:
    name = function.text if isinstance(function, _Name) else type(function).__name__
    if name in _CALLS and isinstance(arguments, tuple):
        return _CALLS[name](*arguments)
    raise ValueError(f"the pickle would call {name}; a dictionary of tensors calls nothing but their constructors")


def _ordered_dict(pairs: Any = ()) -> dict:
    target: dict = {}
    for pair in pairs:
        _insert(target, list(pair))
    return target


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> PickledTensor:
    if not isinstance(storage, PickledStorage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise TypeError("a tensor is made of something else than a storage, a shape and strides")
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise ValueError("the shape, strides or offset of a tensor are not whole numbers from 0")
    return PickledTensor(storage, offset, shape, strides)


def _storage(reference: Any) -> PickledStorage:
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        raise ValueError("the pickle refers to something else than a storage")
    _, kind, key, _, count = reference
    name = kind.text.rpartition(".")[2] if isinstance(kind, _Name) and kind.text.startswith("torch.") else ""
    if name not in _STORAGES or type(key) is not str or type(count) is not int or count < 0:
        raise ValueError("a storage of the pickle is of an unknown kind")
    return PickledStorage(_STORAGES[name], key, count)


_CALLS: dict[str, Callable] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": lambda sizes=(): tuple(sizes),
}
_NOTHING = ("PROTO", "FRAME", "STOP")
_CONSTANTS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "MARK": lambda m, _: m.stack.append(_MARK),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.above_mark())),
    "TUPLE1": lambda m, _: m.stack.append(tuple(m.popped(1))),
    "TUPLE2": lambda m, _: m.stack.append(tuple(m.popped(2))),
    "TUPLE3": lambda m, _: m.stack.append(tuple(m.popped(3))),
    "LIST": lambda m, _: m.stack.append(m.above_mark()),
    "APPEND": lambda m, _: m.extend(m.popped(1)),
    "APPENDS": lambda m, _: m.extend(m.above_mark()),
    "DICT": lambda m, _: m.stack.append(_ordered_dict([m.above_mark()])),
    "SETITEM": lambda m, _: m.add_items(m.popped(2)),
    "SETITEMS": lambda m, _: m.add_items(m.above_mark()),
    "PUT": lambda m, key: m.remember(key),
    "BINPUT": lambda m, key: m.remember(key),
    "LONG_BINPUT": lambda m, key: m.remember(key),
    "MEMOIZE": lambda m, _: m.remember(None),
    "GET": lambda m, key: m.stack.append(m.memo[key]),
    "BINGET": lambda m, key: m.stack.append(m.memo[key]),
    "LONG_BINGET": lambda m, key: m.stack.append(m.memo[key]),
    "GLOBAL": lambda m, text: m.stack.append(_Name(text.replace(" ", "."))),
    "STACK_GLOBAL": lambda m, _: m.stack.append(_Name(".".join(map(str, m.popped(2))))),
    "BINPERSID": lambda m, _: m.stack.append(_storage(m.stack.pop())),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.set_state(),
}
