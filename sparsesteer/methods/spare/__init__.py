"""SPARE (arXiv 2410.15999): steering whether a model answers from its context or from its memory."""

from sparsesteer.methods.spare.conflicts import Conflict, Demonstration, exact_match, with_demonstrations
from sparsesteer.methods.spare.fitting import collect_states
from sparsesteer.methods.spare.spare import SPARE

__all__ = ["SPARE", "Conflict", "Demonstration", "collect_states", "exact_match", "with_demonstrations"]
