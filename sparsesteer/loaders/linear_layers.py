"""What files that hold the state of two nn.Linear layers, with ReLU between, have in common."""

from sparsesteer.activations import ReLU
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site


def read_layers(source: Source, encoder: str, decoder: str, organisation: str, path_pattern: str) -> SAE:
    """Matrices are nn.Linear's, [F, D] and [D, F]: both are used transposed, where they lie.

    Args:
        encoder, decoder: the names of the layers.
        path_pattern: finds ``model``, of the organisation, and ``layer`` in the path.
    """
    file, found = source.own_tensors, source.match(path_pattern)
    assert file is not None
    site = Site()
    if found is not None:
        site = Site(f"{organisation}/{found['model']}", f"blocks.{found['layer']}.hook_resid_post")
    return source.sae(
        site,
        W_enc=file.matrix(f"{encoder}.weight").T,
        W_dec=file.matrix(f"{decoder}.weight").T,
        b_enc=file.vector(f"{encoder}.bias"),
        b_dec=file.vector(f"{decoder}.bias"),
        activation=ReLU(),
        apply_b_dec_to_input=False,
    )
