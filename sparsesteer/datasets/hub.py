"""The paper's two sets, by the names that they have on the Hugging Face hub."""

from collections.abc import Mapping
from typing import Any

NQ_SWAP, MACNOISE = "pminervini/NQ-Swap", "GWHed/dataset_macnoise"
MOST_OF_CHATGPT = 5120  # rows of Macnoise's train_chatgpt that the authors use
_FIELDS = ("question", "org_context", "org_answer", "sub_context", "sub_answer")


def nq_swap() -> list[dict]:
    """NQ-Swap's split ``dev``, 4,746 rows: contexts of Natural Questions whose answer was replaced.

    Raises:
        ImportError: the package ``datasets`` is missing.
        OSError: the hub cannot be reached, or does not give the set.
        ValueError: rows without the fields.
    """
    return [_fields(row, NQ_SWAP) for row in _loaded(NQ_SWAP, "dev")]


def macnoise() -> list[dict]:
    """Macnoise: the first 5,120 rows of ``train_chatgpt`` and all of ``train``, as the authors take them.

    Raises:
        ImportError, OSError, ValueError: as ``nq_swap``.
    """
    rows = [*_loaded(MACNOISE, f"train_chatgpt[:{MOST_OF_CHATGPT}]"), *_loaded(MACNOISE, "train")]
    return [_fields(row, MACNOISE) for row in rows]


def _loaded(name: str, split: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"{name} needs a package: pip install 'sparsesteer[data]'") from error
    try:
        return load_dataset(name, split=split)
    except Exception as error:  # hub, cache and network each raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"{name} could not be loaded from the Hugging Face hub ({reason}); a JSONL file of its fields "
            f"({', '.join(_FIELDS)}) does as well: sparsesteer.datasets.read_conflicts"
        ) from error


def _fields(row: Mapping[str, Any], name: str) -> dict:
    absent = [field for field in _FIELDS if field not in row]
    if absent:
        raise ValueError(f"{name} has a row without {', '.join(absent)}; its fields are {', '.join(row)}")
    return {field: row[field] for field in _FIELDS}
