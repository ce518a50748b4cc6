"""A question about an entity, the concept that it asks for, and what the entity's other concepts are."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sparsesteer.files import write_whole
from sparsesteer.storage import parse_json

PROMPT = "Q: {question}\nA:"


@dataclass(frozen=True)
class Question:
    """A prompt whose answer begins with a space, and the answers to the same question about the other concepts.

    Attributes:
        prompt: as the model reads it.
        concept: the number of what is asked for.
        answers: by concept; None where the entity has no such fact.
        entity: whom or what it is about.
        split: of the entity.
        template: the split of its wording.
    """

    prompt: str
    concept: int
    answers: tuple[str | None, ...]
    entity: str
    split: str = "train"
    template: str = "train"

    @property
    def answer(self) -> str:
        """What is right."""
        answer = self.answers[self.concept]
        assert answer is not None
        return answer


def write_questions(path: str | os.PathLike, concepts: Sequence[str], questions: Iterable[Question]) -> Path:
    """One JSON object a line, concepts by their names; returns the path."""
    lines = []
    for question in questions:
        row = asdict(question) | {"concept": concepts[question.concept]}
        row["answers"] = dict(zip(concepts, question.answers, strict=True))
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return write_whole(path, "".join(lines).encode())


def read_questions(path: str | os.PathLike) -> tuple[list[str], list[Question]]:
    """(names of the concepts, questions) of a file of ``write_questions``.

    Concepts are numbered in the order of the first line's answers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no JSON object, lacks prompt, concept or answers, or has other concepts than the
            first; no lines.
    """
    concepts: list[str] = []
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            row = parse_json(line, f"{path}, line {number}")
            try:
                concepts = concepts or list(row["answers"])
                found.append(_question(row, concepts))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"{path}, line {number} is no question ({error!r}); one has prompt, concept and answers, a mapping "
                    f"of the concepts {', '.join(concepts) or '(as in the first line)'} to texts or null"
                ) from error
    if not found:
        raise ValueError(f"{path} holds no questions")
    return concepts, found


def _question(row: dict, concepts: Sequence[str]) -> Question:
    if set(row["answers"]) != set(concepts) or row["answers"][row["concept"]] is None:
        raise ValueError("its answers are not those of the first line's concepts, or its own is missing")
    return Question(
        prompt=row["prompt"],
        concept=concepts.index(row["concept"]),
        answers=tuple(row["answers"][name] for name in concepts),
        entity=str(row.get("entity", "")),
        split=str(row.get("split", "train")),
        template=str(row.get("template", "train")),
    )
