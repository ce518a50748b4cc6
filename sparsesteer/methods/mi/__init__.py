"""Features explained by words and steered by their meaning (arXiv 2502.15576)."""

from sparsesteer.methods.mi.explaining import explain
from sparsesteer.methods.mi.steering import MISteering

__all__ = ["MISteering", "explain"]
