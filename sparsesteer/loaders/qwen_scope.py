"""Qwen Scope (arXiv 2605.11887): TopK SAEs of Qwen3 and Qwen3.5, one ``layer{n}.sae.pt`` each.

    Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer0.sae.pt

k stands in the name of the repository alone.
"""

from sparsesteer.activations import TopK
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site

NAME = "Qwen Scope"
FILES = "layer*.sae.pt"

_REPOSITORY = r"SAE-Res-(?P<model>[\w.-]+?)-W\d+K-L0_(?P<k>\d+)"
_FILE = r"/layer(?P<layer>\d+)\.sae\.pt$"


def recognises(source: Source) -> bool:
    """A torch file with W_enc and W_dec."""
    own = source.own_tensors
    return own is not None and source.file is not None and source.file.suffix == ".pt" and own.has("W_enc", "W_dec")


def read(source: Source) -> SAE:
    """Matrices are nn.Linear's, [F, D] and [D, F], both used transposed where they lie; b_dec is added only."""
    file, repository, name = source.own_tensors, source.match(_REPOSITORY), source.match(_FILE)
    assert file is not None
    return source.sae(
        Site(
            None if repository is None else f"Qwen/{repository['model']}",
            None if name is None else f"blocks.{name['layer']}.hook_resid_post",
        ),
        W_enc=file.matrix("W_enc").T,
        W_dec=file.matrix("W_dec").T,
        b_enc=file.vector("b_enc"),
        b_dec=file.vector("b_dec"),
        activation=TopK(source.chosen_k(None if repository is None else int(repository["k"]))),
        apply_b_dec_to_input=False,
    )
