"""AlignSAE (arXiv 2512.02004): sparse autoencoders with a slot for every concept, and swaps of concepts."""

from sparsesteer.methods.alignsae.alignsae import AlignSAE
from sparsesteer.methods.alignsae.interventions import DIRECTIONS, FORMS
from sparsesteer.methods.alignsae.recipe import LossWeights, Recipe

__all__ = ["DIRECTIONS", "FORMS", "AlignSAE", "LossWeights", "Recipe"]
