"""SPARE (arXiv 2410.15999): steering whether a model answers from its context or from its memory."""

from sparsesteer.methods.spare.spare import SPARE

__all__ = ["SPARE"]
