"""A study of defences in one folder: what is asked of whom, begun once and gone on with."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsesteer.documents import read_document, write_document
from sparsesteer.methods.safety.controls import Control, fit
from sparsesteer.methods.safety.prompts import divided
from sparsesteer.methods.safety.trials import Trials, digest
from sparsesteer.sae import SAE

DESCRIPTION = "study.json"
# (method, strength); the strengths of features are in units of activations, of "direction" in lengths of the difference
CONTROLS: tuple[tuple[str, float], ...] = (
    ("none", 0.0),
    ("system prompt", 0.0),
    ("direction", 2.0),
    ("direction", 4.0),
    ("amplify, explained", 4.0),
    ("calibrate, explained", 300.0),
    ("gap_fill, explained", 300.0),
    ("amplify, random", 4.0),
    ("calibrate, random", 300.0),
    ("gap_fill, random", 300.0),
    ("gap_fill, contrast", 300.0),
    ("amplify, explained", 1.0),
    ("calibrate, explained", 100.0),
    ("gap_fill, explained", 100.0),
)


@dataclass(frozen=True)
class Protocol:
    """How much is asked."""

    n_attacks: int = 100
    n_harmless: int = 100
    n_fit: int = 64  # prompts of either kind that the direction and the contrast are fitted on
    max_new_tokens: int = 32
    batch: int = 32
    seed: int = 0
    controls: tuple[tuple[str, float], ...] = CONTROLS


@dataclass(frozen=True, eq=False)
class Study:
    """Prompts and controls of a folder."""

    trials: Trials
    controls: Sequence[Control]
    about: Mapping[str, Any]

    @classmethod
    def begun(
        cls,
        folder: Path,
        model: Any,
        tokenizer: Any,
        sae: SAE,
        explained: Sequence[int],
        attacks: Sequence[str],
        harmless: Sequence[str],
        protocol: Protocol,
        about: Mapping[str, Any],
    ) -> "Study":
        """A new study, or the one in the folder if it is the same. No prompt is written, only digests.

        Args:
            explained: the features that were selected by their explanations.
            about: what else a report should say: model, SAE, where the prompts came from.

        Raises:
            ValueError: too few prompts, no features, a folder of another study.
        """
        asked, fitted_on = {}, {}
        for kind, prompts, count in (
            ("attack", attacks, protocol.n_attacks),
            ("harmless", harmless, protocol.n_harmless),
        ):
            asked[kind], fitted_on[kind] = divided(prompts, count, protocol.n_fit, protocol.seed)
        fitted = fit(model, tokenizer, sae, explained, fitted_on["attack"], fitted_on["harmless"])
        controls = [fitted.control(method, strength) for method, strength in protocol.controls]
        description = {
            **about,
            "protocol": asdict(protocol),
            "features": fitted.features,
            "evidence": fitted.evidence,
            "direction_norm": round(float(fitted.direction.norm()), 4),
            "sae_digest": sae.digest,
            "prompts": {kind: digest("\n".join(prompts)) for kind, prompts in asked.items()},
        }
        description = json.loads(json.dumps(description))
        path = folder / DESCRIPTION
        if path.exists():
            _check_same(read_document(path), description, folder)
        write_document(path, description)
        trials = Trials(folder, model, tokenizer, asked, protocol.max_new_tokens, protocol.batch)
        return cls(trials, controls, description)

    def run(self, text: str | None, note: Callable[[str], None]) -> None:
        """All answers that are missing, and perplexities of a text if one is given."""
        self.trials.run(self.controls, note)
        if text is not None:
            self.trials.read_text(self.controls, text, note)


def _check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Controls may be added to a study; all else must be as it was."""
    differ = [name for name in wanted if name != "protocol" and found.get(name) != wanted[name]]
    kept = {name: value for name, value in found.get("protocol", {}).items() if name != "controls"}
    if kept != {name: value for name, value in wanted["protocol"].items() if name != "controls"}:
        differ.append("protocol")
    if differ:
        raise ValueError(f"{folder} holds another study, which differs in {', '.join(differ)}; choose another folder")
