"""Annotators that ask a language model: behind an address that speaks OpenAI's protocol, or in this process."""

import json
import os
import re
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from sparsesteer.generation import as_text, encode_prompt, generate
from sparsesteer.methods.mi.labels import VOTES, Annotation, JunkAnswer
from sparsesteer.methods.mi.word_lists import SAFETY

UNKNOWN = "Cannot Tell"
N_VOTES = 3
LONGEST_SUMMARY = 200  # characters; what is longer is no summary
_EXAMPLES = (
    ("guitar, song, drums, chorus, album", "Music and songs"),
    ("seven, four, dozen, twelve, hundred", "Numbers"),
    ("court, judge, lawsuit, plaintiff, verdict", "Legal proceedings"),
    ("cont, spoon, yesterday, blue, whereas", UNKNOWN),
)


class Asking:
    """Asks for a summary, for three votes on it, and for a label.

    Args:
        ask: a question -> the answer as text.
        name: of the model, as the file of answers has it.
        labels: that it may give.
    """

    def __init__(self, ask: Callable[[str], str], name: str, labels: Sequence[str] = tuple(SAFETY)) -> None:
        if not labels:
            raise ValueError("Asking: give at least one label")
        self.ask, self.labels = ask, tuple(labels)
        self.name = f"{name}: {', '.join(labels)}"

    def annotate(self, words: Sequence[str]) -> Annotation:
        """See ``labels.Annotator``."""
        listed = ", ".join(words)
        summary = self.ask(summary_question(listed)).strip().strip('"').rstrip(".")
        if not summary or len(summary) > LONGEST_SUMMARY:
            raise JunkAnswer(f"summary {summary[:LONGEST_SUMMARY]!r}")
        if summary.casefold().startswith(UNKNOWN.casefold()):
            return Annotation(None, None, ("no",) * N_VOTES)
        # another order for each vote: a model at temperature 0 would give one answer three times
        orders = [", ".join([*words[first::N_VOTES], *(w for i, w in enumerate(words) if i % N_VOTES != first)])
                  for first in range(N_VOTES)]  # fmt: skip
        votes = tuple(_one_of(VOTES, self.ask(judge_question(order, summary))) for order in orders)
        found = _one_of((*self.labels, "none"), self.ask(label_question(summary, self.labels)))
        return Annotation(summary, None if found == "none" else found, votes)


def summary_question(words: str) -> str:
    """For what some words have in common."""
    shown = "\n".join(f"Words: {some}\nSummary: {summary}" for some, summary in _EXAMPLES)
    return (
        "These words explain one feature of a language model. Say in at most eight words what most of them have in "
        f"common. If they have nothing in common, answer {UNKNOWN}.\n\n{shown}\n\nWords: {words}\nSummary:"
    )


def judge_question(words: str, summary: str) -> str:
    """Whether a summary is true of some words."""
    return (
        f"Words: {words}\nSummary: {summary}\n\nIs the summary true of most of the words? Answer with one of "
        f"{', '.join(VOTES)}, and nothing else."
    )


def label_question(summary: str, labels: Sequence[str]) -> str:
    """Which area a summary belongs to."""
    return (
        f"Summary: {summary}\n\nTo which of these areas does it belong: {'; '.join(labels)}? Answer with one of them, "
        "or none, and nothing else."
    )


def _one_of(known: Sequence[str], answer: str) -> str:
    """The one that an answer begins with. Raises JunkAnswer for another answer."""
    text = answer.strip().strip("\"'*.").casefold()
    for each in sorted(known, key=len, reverse=True):
        if re.match(re.escape(each.casefold()) + r"\b", text):
            return each
    raise JunkAnswer(f"{answer[:LONGEST_SUMMARY]!r} is none of {', '.join(known)}")


def endpoint(address: str, model: str, key_variable: str | None = None, timeout: float = 60.0) -> Callable[[str], str]:
    """Asks a server that speaks OpenAI's chat protocol.

    Args:
        address: up to the version, "http://localhost:8000/v1".
        key_variable: the environment variable that holds the key, where the server wants one.
        timeout: seconds for each answer.

    Raises:
        ValueError: an address that is none of http, a variable that is not set. Asking raises OSError where the server
            does not answer, and ValueError for an answer of another form.
    """
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"an endpoint's address should begin with http:// or https://, got {address!r}")
    key = None if key_variable is None else os.environ.get(key_variable)
    if key_variable is not None and not key:
        raise ValueError(f"the environment variable {key_variable} is not set; it should hold the endpoint's key")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def ask(question: str) -> str:
        body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
        request = urllib.request.Request(
            f"{address.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=timeout) as response:
            text = response.read()
        try:
            return str(json.loads(text)["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{address} gave an answer of another form: {text[:200]!r}") from error

    return ask


def local_model(model: Any, tokenizer: Any, max_new_tokens: int = 24) -> Callable[[str], str]:
    """Asks a model of transformers, greedily."""

    def ask(question: str) -> str:
        ids = encode_prompt(tokenizer, question, device=model.device)
        return as_text(tokenizer, generate(model, tokenizer, ids, max_new_tokens=max_new_tokens)[0])

    return ask
