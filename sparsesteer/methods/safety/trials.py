"""Every control's answers to every prompt, kept in a file as they come."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsesteer.methods.evaluation.json_lines import JsonLines
from sparsesteer.methods.safety.answering import answers, perplexity
from sparsesteer.methods.safety.controls import Control

KINDS = ("attack", "harmless")
ANSWERS, PERPLEXITIES = "answers.jsonl", "perplexity.jsonl"


@dataclass(frozen=True, eq=False)
class Trials:
    """A folder of answers.

    Attributes:
        prompts: {"attack": [...], "harmless": [...]}, in the order they are asked.
    """

    folder: Path
    model: Any
    tokenizer: Any
    prompts: Mapping[str, Sequence[str]]
    max_new_tokens: int
    batch: int

    def run(self, controls: Sequence[Control], note: Callable[[str], None]) -> None:
        """Ask what was not asked yet. Each batch goes through all controls, so that what is there can be compared."""
        lines = JsonLines.opened(self.folder / ANSWERS)
        done = {(row["control"], row["kind"], row["prompt"]) for row in lines.rows}
        for first, kind in self._batches():
            some = self.prompts[kind][first : first + self.batch]
            for control in controls:
                left = [prompt for prompt in some if (control.name, kind, digest(prompt)) not in done]
                if not left:
                    continue
                with control.applied(self.model, self.tokenizer):
                    said = answers(self.model, self.tokenizer, left, self.max_new_tokens, control.system)
                for prompt, answer in zip(left, said, strict=True):
                    lines.add({"control": control.name, "kind": kind, "prompt": digest(prompt), "answer": answer})
                note(f"{control.name}: {kind} {first} to {first + len(some)}")

    def read_text(self, controls: Iterable[Control], text: str, note: Callable[[str], None]) -> None:
        """The perplexity of a text under each control that steers, where it is not known yet."""
        lines = JsonLines.opened(self.folder / PERPLEXITIES)
        known = {(row["control"], row["text"]) for row in lines.rows}
        for control in controls:
            if control.system is None and (control.name, digest(text)) not in known:
                with control.applied(self.model, self.tokenizer):
                    found = perplexity(self.model, self.tokenizer, text)
                lines.add({"control": control.name, "text": digest(text), "perplexity": found})
                note(f"{control.name}: perplexity {found:.1f}")

    def _batches(self) -> list[tuple[int, str]]:
        """(first prompt, kind), both kinds in turn."""
        found = [(first, kind) for kind in KINDS for first in range(0, len(self.prompts[kind]), self.batch)]
        return sorted(found, key=lambda each: (each[0], KINDS.index(each[1])))


def digest(text: str) -> str:
    """What tells prompts apart in files that hold none of them."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
