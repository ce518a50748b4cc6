"""The public names, collected when the first of them is asked for."""

from sparsesteer import ops
from sparsesteer.activations import Gated, Identity, JumpReLU, ReLU, Slots, TopK
from sparsesteer.bank import Bank
from sparsesteer.edits import Edit
from sparsesteer.explanations import Explanations
from sparsesteer.hooks import steer
from sparsesteer.methods.alignsae import AlignSAE
from sparsesteer.methods.information import mutual_information
from sparsesteer.methods.mi import MISteering, explain
from sparsesteer.methods.spare import SPARE
from sparsesteer.model.chat_templates import template_tokens
from sparsesteer.neuronpedia import NeuronpediaFeature
from sparsesteer.ops import SparseCodes
from sparsesteer.plans import SteeringPlan
from sparsesteer.plans.control_vectors import save_gguf
from sparsesteer.recording import Recording, record
from sparsesteer.sae import SAE
from sparsesteer.site import Site
from sparsesteer.specs import SaeReference, Spec, load_spec

__all__ = [
    "SAE",
    "SPARE",
    "AlignSAE",
    "Bank",
    "Edit",
    "Explanations",
    "Gated",
    "Identity",
    "JumpReLU",
    "MISteering",
    "NeuronpediaFeature",
    "ReLU",
    "Recording",
    "SaeReference",
    "Site",
    "Slots",
    "SparseCodes",
    "Spec",
    "SteeringPlan",
    "TopK",
    "explain",
    "load_spec",
    "mutual_information",
    "ops",
    "record",
    "save_gguf",
    "steer",
    "template_tokens",
]
