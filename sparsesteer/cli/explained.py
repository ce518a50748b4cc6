"""What is known of an SAE's features without the SAE: the files that lie beside its weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsesteer import feature_page
from sparsesteer.cli.models import DEMO, demo_sae_folder, load_sae
from sparsesteer.word_index import FILE_NAME, ExplanationFile, WordIndex, read_vectors

STATISTICS = "feature_statistics.safetensors"


@dataclass(frozen=True)
class Explained:
    """Words, notes and statistics of features.

    Attributes:
        method: that found the words.
        densities: [F] or None; maxima: [F] or None.
    """

    words: WordIndex
    notes: Any  # with ``note(feature)``
    method: str
    densities: Sequence[float] | None
    maxima: Sequence[float] | None

    @classmethod
    def of(cls, sae: str, model: str, file: Path | None = None) -> "Explained":
        """Of an SAE as the command line names it, or of a file of explanations.

        Raises:
            FileNotFoundError: no such SAE or file.
            ValueError: no explanations beside the SAE.
        """
        folder = _folder(sae, model)
        if folder is None and file is None:
            return cls._of_loaded(sae, model)
        path = file or folder / FILE_NAME  # type: ignore[operator]
        if not path.is_file():
            raise ValueError(
                f"this SAE has no explanations: there is no {path}; `sparsesteer mi explain` writes one, "
                "--explanations names another"
            )
        found = ExplanationFile(path)
        statistics = _statistics(folder, len(found))
        densities = statistics.get("density") if found.density is None else found.density
        return cls(found, found, str(found.about.get("method")), densities, statistics.get("maximum"))

    @classmethod
    def _of_loaded(cls, sae: str, model: str) -> "Explained":
        """Of an SAE out of a cache, whose loader knows where that is."""
        found = load_sae(sae, model)
        if found.explanations is None:
            raise ValueError(
                "this SAE has no explanations; `sparsesteer mi explain` makes them, --explanations names some"
            )
        known = found.explanations
        maxima = None if found.feature_maximum is None else found.feature_maximum.tolist()
        densities = None if known.density is None else known.density.tolist()
        return cls(known.index, known, known.method, densities, maxima)

    def maximum_of(self, feature: int) -> float | None:
        """The largest activation on the SAE's corpus, where known."""
        return None if self.maxima is None else float(self.maxima[feature])

    def facts(self, feature: int) -> dict[str, Any]:
        """All that is known of a feature, as plain data."""
        note = self.notes.note(feature)
        return {
            "feature": feature,
            "words": [asdict(scored) for scored in self.words[feature]],
            "maximum": self.maximum_of(feature),
            "density": None if self.densities is None else float(self.densities[feature]),
            **{name: note.get(name) for name in ("label", "summary", "verdict")},
            "contexts": note.get("contexts", []),
        }

    def write_page(self, path: Path) -> Path:
        """A page of all features, in one file."""
        every = range(len(self.words))
        return feature_page.write(path, self.method, [self.facts(feature) for feature in every])


def _folder(sae: str, model: str) -> Path | None:
    """Where an SAE's files lie; None for one that a cache holds."""
    if sae == DEMO:
        return demo_sae_folder(model)
    path = Path(sae).expanduser()
    if path.exists():
        return path if path.is_dir() else path.parent
    if ":" in sae:
        return None
    raise FileNotFoundError(f'--sae: no such folder: {sae}; give a folder, a file, "release:sae_id", or "{DEMO}"')


def _statistics(folder: Path | None, n_features: int) -> dict[str, Sequence[float]]:
    path = None if folder is None else folder / STATISTICS
    if path is None or not path.is_file():
        return {}
    return {name: found for name, found in read_vectors(path)[1].items() if len(found) == n_features}
