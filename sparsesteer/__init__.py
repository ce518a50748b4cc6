"""Steer language models through their sparse autoencoders, touching only the features that change."""

from sparsesteer import ops
from sparsesteer.activations import Gated, Identity, JumpReLU, ReLU, Slots, TopK
from sparsesteer.bank import Bank
from sparsesteer.chat_templates import template_tokens
from sparsesteer.edits import Edit
from sparsesteer.hooks import steer
from sparsesteer.ops import SparseCodes
from sparsesteer.plans import SteeringPlan
from sparsesteer.sae import SAE
from sparsesteer.site import Site

__version__ = "0.1.0"

__all__ = [
    "SAE",
    "Bank",
    "Edit",
    "Gated",
    "Identity",
    "JumpReLU",
    "ReLU",
    "Site",
    "Slots",
    "SparseCodes",
    "SteeringPlan",
    "TopK",
    "ops",
    "steer",
    "template_tokens",
]
