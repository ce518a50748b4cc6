"""SAEs on the attention heads of GPT-2 small (arXiv 2406.17759): ``NAME.pt`` beside ``NAME_cfg.json``.

ckkissane/attn-saes-gpt2-small-all-layers/
"""

from pathlib import Path

from sparsesteer.activations import ReLU
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site

NAME = "attention SAEs of GPT-2"
FILES = "NAME.pt and NAME_cfg.json"


def recognises(source: Source) -> bool:
    """A .pt file with a configuration of its name beside it."""
    return source.file is not None and source.file.suffix == ".pt" and (source.folder / _config(source.file)).is_file()


def read(source: Source) -> SAE:
    """Matrices are [D, F] and [F, D] as they are; D is all heads side by side."""
    file = source.own_tensors
    assert file is not None and source.file is not None
    config = source.json(_config(source.file))
    hook, W_enc = config.get("act_name"), file.matrix("W_enc")
    sizes = (config.get("act_size"), config.get("dict_size"))
    if tuple(W_enc.shape) != sizes or not isinstance(hook, str):
        raise ValueError(
            f"{file.where}: its configuration says act_size, dict_size = {sizes} and act_name {hook!r}, "
            f"W_enc has shape {list(W_enc.shape)}"
        )
    return source.sae(
        Site("gpt2", hook),
        W_enc=W_enc,
        W_dec=file.matrix("W_dec"),
        b_enc=file.vector("b_enc"),
        b_dec=file.vector("b_dec"),
        activation=ReLU(),
        apply_b_dec_to_input=True,
    )


def _config(file: Path) -> str:
    return f"{file.stem}_cfg.json"
