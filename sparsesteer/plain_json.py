"""JSON that is trusted for nothing: one object whose names are all different."""

import json


def parse_json(text: str | bytes, where: str) -> dict:
    """A JSON object whose names are all different. Raises ValueError for anything else."""
    try:
        parsed = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not readable as JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{where} should be a JSON object, got {type(parsed).__name__}")
    return parsed


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name stands in it twice")
    return names
