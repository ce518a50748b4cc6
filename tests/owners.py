"""The classes of the libraries that own a format, imported without the rest of those libraries.

Their packages import trainers, and these much that inference does not need (dictionary_learning: nnsight, torchvision):
a bare package of the same name lets single modules import each other, and is taken away again.
"""

import importlib
import os
import sys
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import pytest

HOW = "pip install --no-deps eai-sparsify dictionary-learning natsort"


@cache
def sparsify():
    """The module that holds ``SparseCoder``, and ``SparseCoderConfig`` beside it."""
    with _without_init("sparsify"):
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # it would launch Triton kernels on CPU tensors
        return _imported("sparsify.sparse_coder")


@cache
def dictionary_learning() -> dict[str, type]:
    """The classes of dictionaries by name."""
    with _without_init("dictionary_learning", "dictionary_learning.trainers"):
        modules = [
            _imported(f"dictionary_learning.{name}")
            for name in ("dictionary", "trainers.top_k", "trainers.batch_top_k", "trainers.matryoshka_batch_top_k")
        ]
    return {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}


def _imported(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name.partition('.')[0]} does not load: {error}; {HOW}")


@contextmanager
def _without_init(*packages):
    top = packages[0]
    spec = find_spec(top)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{top} is not installed: {HOW}")
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == top}
    for name in before:
        del sys.modules[name]
    for package in packages:
        bare = ModuleType(package)
        parts = package.split(".")[1:]
        bare.__path__ = [os.path.join(place, *parts) for place in spec.submodule_search_locations]
        sys.modules[package] = bare
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == top]:
            del sys.modules[name]
        sys.modules.update(before)
