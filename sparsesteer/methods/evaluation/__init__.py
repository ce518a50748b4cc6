"""How well a method moves answers between context and memory: the paper's measures, equal budgets, one test."""

from sparsesteer.methods.evaluation.prefilled import PrefilledAnswerer
from sparsesteer.methods.evaluation.protocol import Protocol
from sparsesteer.methods.evaluation.study import Study

__all__ = ["PrefilledAnswerer", "Protocol", "Study"]
