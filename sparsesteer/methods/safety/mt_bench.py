"""Answers to MT-Bench's questions in the file format of FastChat, whose judge reads them."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparsesteer.generation import as_text
from sparsesteer.methods.evaluation.json_lines import JsonLines
from sparsesteer.methods.reading import padding_of
from sparsesteer.methods.safety.controls import Control


def read_questions(path: Path) -> list[dict[str, Any]]:
    """The lines of FastChat's question.jsonl. Raises ValueError for one without a number and turns."""
    rows = JsonLines.opened(path).rows
    for number, row in enumerate(rows, 1):
        turns = row.get("turns")
        if "question_id" not in row or not isinstance(turns, list) or not all(isinstance(t, str) for t in turns):
            raise ValueError(f"{path}, line {number}: a question should have question_id and turns, a list of texts")
    if not rows:
        raise ValueError(f"{path} holds no questions")
    return rows


def answer_questions(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Mapping[str, Any]],
    control: Control,
    path: Path,
    model_id: str,
    max_new_tokens: int = 512,
    note: Callable[[str], None] = print,
) -> Path:
    """Answer all turns of what is not answered in the file yet, greedily; returns the file's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = JsonLines.opened(path)
    done = {row["question_id"] for row in lines.rows}
    for question in questions:
        if question["question_id"] in done:
            continue
        with control.applied(model, tokenizer):
            turns = _turns(model, tokenizer, question["turns"], control.system, max_new_tokens)
        lines.add(
            {
                "question_id": question["question_id"],
                "answer_id": uuid.uuid4().hex[:22],
                "model_id": model_id,
                "choices": [{"index": 0, "turns": turns}],
                "tstamp": time.time(),
            }
        )
        note(f"question {question['question_id']}")
    return path


@torch.no_grad()
def _turns(model: Any, tokenizer: Any, asked: Sequence[str], system: str | None, max_new_tokens: int) -> list[str]:
    """One answer after the other, each behind all that was said before."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    answers: list[str] = []
    for turn in asked:
        messages.append({"role": "user", "content": turn})
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
            pad_token_id=padding_of(tokenizer),
        )  # fmt: skip
        answers.append(as_text(tokenizer, whole[0, ids.shape[1] :].tolist()))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers
