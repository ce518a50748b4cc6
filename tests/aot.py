"""Compiles Triton kernels for GPUs that are not there, exactly as the launchers would launch them."""

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes that one block may have, by architecture
CAPABILITIES = (80, 90, 100)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Launch:
    """One launch: kernel, argument types and constants, in a form that can be compared."""

    kernel: triton.JITFunction
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    divisible: tuple[str, ...]
    options: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Compiled:
    """What the assembler says of a kernel, and how it sums products: operations with the layouts of their operands."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    products: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Case:
    """One call of an op and an architecture to compile its launches for."""

    capability: int
    arguments: tuple
    aligned: bool = True  # the loads of an odd width cannot be staged in shared memory, and may spill

    @property
    def id(self) -> str:
        words = [word for argument in self.arguments for word in _words(argument)]
        return "-".join([f"sm{self.capability}", *words])


def _words(argument) -> list[str]:
    if isinstance(argument, tuple):
        return [word for part in argument for word in _words(part)]
    return [argument.name if isinstance(argument, Enum) else str(argument)]


@dataclass(frozen=True)
class Op:
    """An op whose launches are compiled: ``call(*case.arguments)`` runs its launcher on CPU tensors."""

    name: str
    kernels: tuple[tuple[ModuleType, tuple[str, ...]], ...]  # all that it launches, by the module that launches them
    call: Callable[..., object]
    sample: tuple[Case, ...]  # together they launch every kernel
    every: tuple[Case, ...]

    def launches(self, case: Case) -> "list[Launch]":
        """What a call launches."""
        with recorded(self.kernels) as launches:
            self.call(*case.arguments)
        return launches


@contextmanager
def recorded(kernels):
    """Replaces kernels, given as (module, names); yields the list that their launches are appended to."""
    launches: list[Launch] = []
    replaced = [(module, name, getattr(module, name)) for module, names in kernels for name in names]
    for module, name, kernel in replaced:
        setattr(module, name, _Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for module, name, kernel in replaced:
            setattr(module, name, kernel)


class _Recorder:
    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        assert all(0 < size < 65536 for size in grid), f"grid {grid}"
        return self._record

    def _record(self, *args, **keywords):
        parameters = {p.name: p for p in self.kernel.params}
        options = {name: value for name, value in keywords.items() if name not in parameters}
        given = dict(zip(parameters, args, strict=False)) | {k: v for k, v in keywords.items() if k in parameters}
        values = {name: given[name] for name in parameters}
        kinds = {name: _kind(value, parameters[name]) for name, value in values.items()}
        constants = {name: value for name, value in values.items() if kinds[name] == "constexpr"}
        divisible = [name for name, kind in kinds.items() if kind != "constexpr" and _divisible(values[name])]
        specialised = [name for name in divisible if not parameters[name].do_not_specialize]
        self.launches.append(
            Launch(
                self.kernel, tuple(kinds.items()), tuple(constants.items()), tuple(specialised), tuple(options.items())
            )
        )


def _kind(value, parameter) -> str:
    """The type Triton gives an argument when it specialises a launch."""
    if parameter.is_constexpr or value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, int):
        return "constexpr" if value == 1 and not parameter.do_not_specialize else "i32"
    return "fp32"


def _divisible(value) -> bool:
    number = value.data_ptr() if isinstance(value, torch.Tensor) else value
    return isinstance(number, int) and number % 16 == 0


@functools.cache
def compile_for(launch: Launch, capability: int) -> Compiled:
    """Compile down to machine code for an architecture (80, 90, 100)."""
    position = {name: i for i, (name, _) in enumerate(launch.signature)}
    source = ASTSource(
        launch.kernel,
        signature=dict(launch.signature),
        constexprs={(position[name],): value for name, value in launch.constants},
        attrs={(position[name],): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))
    report = _assemble(kernel.asm["ptx"], capability)
    return Compiled(
        registers=int(re.search(r"Used (\d+) registers", report)[1]),
        spilled_bytes=sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        shared_bytes=kernel.metadata.shared,
        products=tuple(_products(kernel.asm["ttgir"])),
    )


def _products(code: str) -> Iterator[str]:
    """The tensor-core products and the fp32 sums over two-dimensional tensors, without the names of values."""
    layouts = dict(re.findall(r"^(#\w+) = (#ttn?g\..*>)$", code, re.MULTILINE))
    sums = re.findall(r"\}\) : \(tensor<\d+x\d+xf32.*", code)
    products = re.findall(r"(?:tt\.dot|ttng\.warp_group_dot|ttng\.tc_gen5_mma) .*", code)
    for operation in products + sums:
        anonymous = re.sub(r"%\w+(#\d+)?", "%", re.sub(r" loc\(.*", "", operation))
        yield re.sub(r"#\w+", lambda alias: layouts.get(alias[0], alias[0]), anonymous)


def _assemble(ptx: str, capability: int) -> str:
    """ptxas's own account, with the assembler that Triton uses for this architecture."""
    assembler = _BINARIES / "ptxas-blackwell" if capability >= 100 else _BINARIES / "ptxas"
    target = re.search(r"\.target (sm_\w+)", ptx)[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [assembler, "-v", f"--gpu-name={target}", path, "-o", path.with_suffix(".cubin")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr
