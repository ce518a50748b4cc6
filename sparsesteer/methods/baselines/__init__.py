"""What SPARE is compared with, each from its published definition."""

from sparsesteer.methods.baselines.ablations import AddOnly, InputIndependent, RandomFeatures, RemoveOnly
from sparsesteer.methods.baselines.control import Control, LastTokenControl, SpareControl
from sparsesteer.methods.baselines.decoding import ContextAwareDecoding, ContrastingLayers
from sparsesteer.methods.baselines.demonstrations import InContext
from sparsesteer.methods.baselines.dense import ActAdd, TaskVector
from sparsesteer.methods.baselines.spectral import SpectralEditing

__all__ = [
    "ActAdd",
    "AddOnly",
    "ContextAwareDecoding",
    "ContrastingLayers",
    "Control",
    "InContext",
    "InputIndependent",
    "LastTokenControl",
    "RandomFeatures",
    "RemoveOnly",
    "SpareControl",
    "SpectralEditing",
    "TaskVector",
]
