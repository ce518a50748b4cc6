"""Worlds whose facts a small language model can learn whole: people with six relations, and chains of two relations."""

from sparsesteer.datasets.biographies.people import Biographies, Person, biographies
from sparsesteer.datasets.biographies.questions import Question, read_questions, write_questions
from sparsesteer.datasets.biographies.two_hop import TwoHop, two_hop

__all__ = [
    "Biographies",
    "Person",
    "Question",
    "TwoHop",
    "biographies",
    "read_questions",
    "two_hop",
    "write_questions",
]
