"""Goodfire's SAEs of Llama 3.1 8B and 3.3 70B: one file each, the state of two nn.Linear layers with ReLU between.

Goodfire/Llama-3.1-8B-Instruct-SAE-l19/Llama-3.1-8B-Instruct-SAE-l19.pth
"""

from sparsesteer.loaders.linear_layers import read_layers
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE

NAME = "Goodfire"
FILES = "*.pt or *.pth with encoder_linear and decoder_linear"

_FILE = r"/(?P<model>Llama-[\w.-]+)-SAE-l(?P<layer>\d+)\.pth?$"


def recognises(source: Source) -> bool:
    """A torch file with the two layers."""
    own = source.own_tensors
    return own is not None and own.has("encoder_linear.weight", "decoder_linear.weight")


def read(source: Source) -> SAE:
    """See ``read_layers``."""
    return read_layers(source, "encoder_linear", "decoder_linear", "meta-llama", _FILE)
