"""The SAE of DeepSeek-R1-Distill-Llama-8B by qresearch: one file, the state of two nn.Linear layers, ReLU between.

qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19/DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt
"""

from sparsesteer.activations import ReLU
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site

NAME = "DeepSeek-R1"
FILES = "*.pt with encoder.weight, encoder.bias, decoder.weight and decoder.bias"

_FILE = r"/(?P<model>DeepSeek-R1-[\w.-]+)-SAE-l(?P<layer>\d+)\.pth?$"


def recognises(source: Source) -> bool:
    """A torch file with both layers and their biases."""
    own = source.own_tensors
    return own is not None and own.has("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def read(source: Source) -> SAE:
    """Matrices are nn.Linear's, [F, D] and [D, F]: both are used transposed, where they lie."""
    file, found = source.own_tensors, source.match(_FILE)
    assert file is not None
    return source.sae(
        Site() if found is None else Site(f"deepseek-ai/{found['model']}", f"blocks.{found['layer']}.hook_resid_post"),
        W_enc=file.matrix("encoder.weight").T,
        W_dec=file.matrix("decoder.weight").T,
        b_enc=file.vector("encoder.bias"),
        b_dec=file.vector("decoder.bias"),
        activation=ReLU(),
        apply_b_dec_to_input=False,
    )
