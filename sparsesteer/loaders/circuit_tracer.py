"""Transcoders as circuit-tracer reads them: one ``layer_{n}.safetensors`` a layer, ``config.yaml`` beside them.

    mwhanna/qwen3-4b-transcoders/layer_12.safetensors

Matrices have been stored both ways round; the lengths of the biases tell which.
"""

import re

from sparsesteer.activations import JumpReLU, ReLU
from sparsesteer.loaders.named_tensors import NamedTensors
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site
from sparsesteer.weights import Matrix

NAME = "circuit-tracer"
FILES = "*.safetensors with W_enc, W_dec, b_enc and b_dec, config.yaml beside it"

_CONFIG = "config.yaml"
_LAYER = r"layer_(\d+)\.safetensors$"
_THRESHOLD = "activation_function.threshold"
_CROSS_LAYER = r"W_(enc|dec)_\d+"


def recognises(source: Source) -> bool:
    """A safetensors file with two matrices and two biases, or with those of a cross-layer transcoder."""
    own = source.own_tensors
    if own is None or source.file is None or source.file.suffix != ".safetensors":
        return False
    return own.has("W_enc", "W_dec", "b_enc", "b_dec") or any(re.fullmatch(_CROSS_LAYER, name) for name in own.tensors)


def read(source: Source) -> SAE:
    """A transcoder of ReLU, or of JumpReLU where thresholds are stored; b_dec is added only."""
    file = source.own_tensors
    assert file is not None
    if any(re.fullmatch(_CROSS_LAYER, name) for name in file.tensors):
        raise ValueError(f"{file.where} is of a cross-layer transcoder: it writes to many layers, a plan steers one")
    if file.has("log_thresholds"):
        raise ValueError(f"{file.where}: log_thresholds are not read; thresholds are, as {_THRESHOLD}")
    b_enc, b_dec = file.vector("b_enc"), file.vector("b_dec")
    encoder = file.matrix("W_enc")
    width = min(encoder.shape) if len(b_enc) == max(encoder.shape) else max(encoder.shape)
    return source.sae(
        _site(source),
        W_enc=_turned(file, "W_enc", (width, len(b_enc))),
        W_dec=_turned(file, "W_dec", (len(b_enc), len(b_dec))),
        W_skip=file.matrix("W_skip") if file.has("W_skip") else None,
        b_enc=b_enc,
        b_dec=b_dec,
        activation=JumpReLU(file.vector(_THRESHOLD)) if file.has(_THRESHOLD) else ReLU(),
        transcoder=True,
    )


def _turned(file: NamedTensors, name: str, shape: tuple[int, int]) -> Matrix:
    """The matrix with this shape, stored so or transposed."""
    matrix = file.matrix(name)
    if shape[0] == shape[1]:
        raise ValueError(f"{file.where}: {name} is square, which does not tell whether it is stored transposed")
    if tuple(matrix.shape) not in (shape, shape[::-1]):
        raise ValueError(f"{file.where}: {name} should have shape {list(shape)}, got {list(matrix.shape)}")
    return matrix if tuple(matrix.shape) == shape else matrix.T


def _site(source: Source) -> Site:
    layer, config = source.match(_LAYER), _config(source)
    hooks = (config.get(f"feature_{way}_hook") for way in ("input", "output"))
    if layer is None:
        return Site(config.get("model_name"))
    return Site(config.get("model_name"), *(hook and f"blocks.{layer[1]}.{hook}" for hook in hooks))


def _config(source: Source) -> dict[str, str]:
    """The texts at the top of ``config.yaml``, as far as there is one."""
    if not (source.folder / _CONFIG).is_file():
        return {}
    lines = source.text(_CONFIG).decode(errors="replace").splitlines()
    found = (re.fullmatch(r"""(\w+):\s*["']?([\w./-]+)["']?\s*""", line) for line in lines)
    return {match[1]: match[2] for match in found if match is not None}
