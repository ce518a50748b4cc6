"""Public ops: check what came, choose a backend, call. Shapes: h [..., D], any leading shape of N tokens."""

from sparsesteer import _native
from sparsesteer.ops.activations import activations
from sparsesteer.ops.coding import SparseCodes, decode, encode
from sparsesteer.ops.slots import steer_slots
from sparsesteer.ops.steering import steer

__all__ = ["SparseCodes", "activations", "decode", "encode", "native_build", "steer", "steer_slots"]


def native_build() -> dict[str, str]:
    """What the loaded extension was built with; empty without one."""
    return _native.build_info()
