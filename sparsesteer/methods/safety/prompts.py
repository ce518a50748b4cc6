"""Prompts out of files of the usual forms."""

import csv
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

FIELDS = ("prompt", "instruction", "goal", "question", "text", "behavior", "augq")


def read_prompts(path: str | os.PathLike) -> list[str]:
    """The prompts of a .json (a list), .jsonl or .csv file: texts, or objects with one of FIELDS.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, an entry without a prompt, no prompts at all.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".csv":
            entries: object = list(csv.DictReader(text.splitlines()))
        elif path.suffix == ".jsonl":
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif path.suffix == ".json":
            entries = json.loads(text)
        else:
            raise ValueError(
                f"{path}: prompts are read from .json, .jsonl and .csv, not {path.suffix or 'such a file'}"
            )
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} should hold a list of prompts, and holds none")
    return [_prompt(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]


def _prompt(entry: object, where: str) -> str:
    found = entry
    if isinstance(entry, dict):
        found = next((entry[name] for name in FIELDS if name in entry), None)
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"{where} has no prompt: a text, or an object with one of {', '.join(FIELDS)}")
    return found.strip()


def divided(prompts: Sequence[str], n_asked: int, n_fit: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """(those that are asked, those that a defence may be fitted on), no prompt in both, drawn by a seed.

    Raises:
        ValueError: too few prompts.
    """
    different = list(dict.fromkeys(prompts))
    if len(different) < n_asked + n_fit:
        raise ValueError(f"{n_asked} prompts to ask and {n_fit} to fit on are more than the {len(different)} given")
    drawn = random.Random(seed).sample(different, n_asked + n_fit)
    return drawn[:n_asked], drawn[n_asked:]
