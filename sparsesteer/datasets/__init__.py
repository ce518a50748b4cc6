"""Questions whose context contradicts what a model remembers: from the Hugging Face hub, from files, from geography.

Every loader gives mappings with NQ-Swap's fields: question, org_context, org_answer, sub_context, sub_answer.
"""

from sparsesteer.datasets.files import read_conflicts, write_conflicts
from sparsesteer.datasets.geography import geography
from sparsesteer.datasets.hub import macnoise, nq_swap

__all__ = ["geography", "macnoise", "nq_swap", "read_conflicts", "write_conflicts"]
