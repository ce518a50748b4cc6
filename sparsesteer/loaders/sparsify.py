"""EleutherAI's sparsify: TopK SAEs and transcoders, ``cfg.json`` and ``sae.safetensors`` in a folder per module.

    EleutherAI/sae-llama-3-8b-32x/layers.10/

The arithmetic is that of sparsify itself: b_dec is subtracted from what an SAE encodes, and never of a transcoder;
``normalize_decoder`` is about training alone; ``W_skip`` passes on what was read, b_dec not subtracted.
"""

import re

from sparsesteer.activations import TopK
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site

NAME = "sparsify"
FILES = "cfg.json and sae.safetensors"

_WEIGHTS, _CONFIG, _RUN = "sae.safetensors", "cfg.json", "config.json"
_DEFAULTS = {"k": 32, "expansion_factor": 32, "num_latents": 0}
_BLOCK = r"(?:[\w.]+\.)?(?:layers|h|blocks)\.(\d+)"


def recognises(source: Source) -> bool:
    """A folder with both files, or the weights in it."""
    return source.has(_WEIGHTS, _CONFIG)


def read(source: Source) -> SAE:
    """encoder.weight is [F, D], used transposed where it lies; W_dec is [F, D] as it is."""
    config, file = source.json(_CONFIG), source.tensors(_WEIGHTS)
    where = str(source.folder / _CONFIG)
    flags = {name: _flag(config, name, where) for name in ("transcode", "skip_connection", "signed")}
    activation = config.get("activation", "topk")
    if flags["signed"] or activation != "topk":
        what = "signed=True, features of both signs," if flags["signed"] else f"activation {activation!r}"
        raise ValueError(f"{where}: {what} is not read; topk of positive ones is")
    if flags["skip_connection"] is not file.has("W_skip"):
        raise ValueError(
            f"{file.where}: skip_connection is {flags['skip_connection']}, W_skip is there: {file.has('W_skip')}"
        )
    encoder = file.matrix("encoder.weight")
    _check_sizes(config, tuple(encoder.shape), where)
    return source.sae(
        _site(source, flags["transcode"]),
        W_enc=encoder.T,
        W_dec=file.matrix("W_dec"),
        W_skip=file.matrix("W_skip") if flags["skip_connection"] else None,
        b_enc=file.vector("encoder.bias"),
        b_dec=file.vector("b_dec"),
        activation=TopK(source.chosen_k(_whole(config, "k", where))),
        apply_b_dec_to_input=not flags["transcode"],
        transcoder=flags["transcode"],
    )


def _flag(config: dict, name: str, where: str) -> bool:
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"{where}: {name} should be true or false, got {value!r}")
    return value


def _whole(config: dict, name: str, where: str) -> int:
    value = config.get(name, _DEFAULTS.get(name))
    if type(value) is not int:
        raise ValueError(f"{where}: {name} should be a whole number, got {value!r}")
    return value


def _check_sizes(config: dict, shape: tuple[int, ...], where: str) -> None:
    width = _whole(config, "d_in", where)
    n_features = _whole(config, "num_latents", where) or width * _whole(config, "expansion_factor", where)
    if shape != (n_features, width):
        raise ValueError(f"{where}: d_in and features are {width}, {n_features}; encoder.weight is {list(shape)}")


def _site(source: Source, transcode: bool) -> Site:
    """The folder has the name of a module, relative to the model without its head."""
    module = source.folder.absolute().name
    block = re.fullmatch(_BLOCK, module)
    mlp = re.fullmatch(_BLOCK + r"\.mlp", module)
    model = _model(source)
    if transcode:  # of the module's input to its output
        if block is not None:
            return Site(model, f"blocks.{block[1]}.hook_resid_pre", f"blocks.{block[1]}.hook_resid_post")
        return Site(model, None if mlp is None else f"blocks.{mlp[1]}.mlp.hook_in", module)
    if block is not None:
        return Site(model, f"blocks.{block[1]}.hook_resid_post")
    known = mlp is not None or re.fullmatch(_BLOCK + r"\.[\w.]+|[\w.]*embed\w*|wte", module)
    return Site(model, module if known else None)


def _model(source: Source) -> str | None:
    """From the configuration of the training run, which lies one folder above."""
    run = Source(source.folder.absolute().parent)
    if not (run.folder / _RUN).is_file():
        return None
    model = run.json(_RUN).get("model")
    return model if isinstance(model, str) else None
