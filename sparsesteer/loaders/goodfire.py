"""Goodfire's SAEs of Llama 3.1 8B and 3.3 70B: one file each, the state of two nn.Linear layers with ReLU between.

Goodfire/Llama-3.1-8B-Instruct-SAE-l19/Llama-3.1-8B-Instruct-SAE-l19.pth
"""

from sparsesteer.activations import ReLU
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site

NAME = "Goodfire"
FILES = "*.pt or *.pth with encoder_linear and decoder_linear"

_FILE = r"/(?P<model>Llama-[\w.-]+)-SAE-l(?P<layer>\d+)\.pth?$"


def recognises(source: Source) -> bool:
    """A torch file with the two layers."""
    own = source.own_tensors
    return own is not None and own.has("encoder_linear.weight", "decoder_linear.weight")


def read(source: Source) -> SAE:
    """Matrices are nn.Linear's, [F, D] and [D, F]: both are used transposed, where they lie."""
    file, found = source.own_tensors, source.match(_FILE)
    assert file is not None
    return source.sae(
        Site() if found is None else Site(f"meta-llama/{found['model']}", f"blocks.{found['layer']}.hook_resid_post"),
        W_enc=file.matrix("encoder_linear.weight").T,
        W_dec=file.matrix("decoder_linear.weight").T,
        b_enc=file.vector("encoder_linear.bias"),
        b_dec=file.vector("decoder_linear.bias"),
        activation=ReLU(),
        apply_b_dec_to_input=False,
    )
