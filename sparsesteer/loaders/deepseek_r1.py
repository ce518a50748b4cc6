"""The SAE of DeepSeek-R1-Distill-Llama-8B by qresearch: one file, the state of two nn.Linear layers, ReLU between.

qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19/DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt
"""

from sparsesteer.loaders.linear_layers import read_layers
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE

NAME = "DeepSeek-R1"
FILES = "*.pt with encoder.weight, encoder.bias, decoder.weight and decoder.bias"

_FILE = r"/(?P<model>DeepSeek-R1-[\w.-]+)-SAE-l(?P<layer>\d+)\.pth?$"


def recognises(source: Source) -> bool:
    """A torch file with both layers and their biases."""
    own = source.own_tensors
    return own is not None and own.has("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def read(source: Source) -> SAE:
    """See ``read_layers``."""
    return read_layers(source, "encoder", "decoder", "deepseek-ai", _FILE)
