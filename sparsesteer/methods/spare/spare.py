"""``ss.SPARE``: statistics of features at one site or several, selections and plans from them."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from sparsesteer.edits import Edit
from sparsesteer.methods.information import RandomState
from sparsesteer.methods.spare import files
from sparsesteer.methods.spare.fitting import fit_statistics
from sparsesteer.methods.spare.measuring import Estimate
from sparsesteer.methods.spare.selection import Selection
from sparsesteer.methods.spare.statistics import FORMS, SIDES, FeatureStatistics, check_named, plan
from sparsesteer.sae import SAE


class SPARE:
    """Features that tell whether a model answers from its context or from its memory, and steering by them.

        spare = ss.SPARE.fit(model, tokenizer, {13: sae13, 14: sae14}, examples, share=0.07)
        with ss.steer(model, spare.plan(toward="memory", alpha=2.0), positions="last_prompt"):
            model.generate(**inputs)

    arXiv 2410.15999. Made by ``fit``, ``from_statistics`` or ``load``. With one SAE given as such, methods return a
    list of features and a plan; with a mapping {site: SAE}, sites named as ``ss.steer`` takes them, they return
    mappings by site. Plans of several sites act in one forward pass, each on what the ones before it left.

    Attributes:
        saes: {site: SAE}; the site of an SAE given alone is None.
        statistics: {site: FeatureStatistics}.
        selection: how many features each site gives.
        about: how the statistics came about, as JSON; empty where they were given.
    """

    def __init__(
        self,
        saes: Mapping[Any, SAE],
        statistics: Mapping[Any, FeatureStatistics],
        selection: Selection,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(statistics, Mapping) or not statistics or set(statistics) != set(saes):
            raise ValueError(
                f"SPARE: statistics are needed for the sites of the SAEs, {list(saes)}; SPARE.fit, from_statistics and "
                "load make a SPARE that has them"
            )
        self.saes, self.statistics = dict(saes), dict(statistics)
        self.selection, self.about = selection, dict(about or {})

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        saes: SAE | Sequence[SAE] | Mapping[Any, SAE],
        examples: Iterable[Any],
        layers: Any = None,
        *,
        k: int | None = None,
        share: float | None = None,
        means: str = "plain",
        estimator: str = "knn",
        n_neighbors: int = 3,
        random_state: RandomState = 0,
        max_new_tokens: int = 12,
        batch_size: int = 8,
        folder: str | os.PathLike | None = None,
        progress: bool = True,
    ) -> "SPARE":
        """From a model's greedy answers to questions whose context contradicts what it remembers.

        A prompt is "context: ...\\nquestion: ...\\nanswer:" behind its demonstrations. An answer, its first line,
        counts for the context if it is one of ``sub_answer``, for memory if one of ``org_answer`` (but for case,
        punctuation, articles, spaces), else not at all. The states at the last token of the prompts are kept, [n, D]
        for each site; codes are made of them for some thousand features at a time.

        Args:
            model: of transformers, in evaluation mode.
            saes: the SAE, whose site is known; several; or {site: SAE}.
            examples: mappings with question, sub_context, sub_answer, org_answer (NQ-Swap's names; an answer is a text
                or a list of texts that are all right) and perhaps demonstrations, mappings with context, question and
                answer. ``sparsesteer.methods.spare.with_demonstrations`` adds these as the authors do.
            layers: which of the sites; all by default.
            k: how many features are selected, as in ``from_statistics``.
            share: the same as a share of the information.
            means: functional values as "plain" means, or weighted by "confidence", which takes two more passes for
                each answer; in the authors' data the weights are almost equal.
            estimator: of ``ss.mutual_information``, as are the next two.
            n_neighbors: k of the estimator "knn".
            random_state: of its noise.
            batch_size: prompts that are answered together, padded on the left.
            folder: where what is collected is kept, in parts. The same call goes on where one was interrupted, and
                one for the same model, sites and examples reads all of it. Several processes (``torchrun``,
                ``accelerate launch``) answer each a share, meet here, and return the same.
            progress: a bar on stderr, where that is a terminal.

        Raises:
            ValueError, TypeError: arguments that do not fit; a site that the model lacks; answers of one kind only, or
                too few; states or codes that are NaN or infinite; a folder of another collection; several processes
                without a folder.
            RuntimeError: several processes that do not know of each other.
        """
        selection = Selection(k, share)
        estimate = Estimate(estimator, n_neighbors, random_state)
        found = fit_statistics(
            model, tokenizer, saes, examples, layers, estimate, means, max_new_tokens, batch_size, folder, progress
        )
        chosen, statistics, about = found
        return cls(chosen, statistics, selection, about)

    @classmethod
    def from_statistics(
        cls,
        sae: SAE | Mapping[Any, SAE],
        mi: Any,
        mean_context: Any,
        mean_memory: Any,
        mean_difference: Any = None,
        k: int | None = None,
        share: float | None = None,
    ) -> "SPARE":
        """From statistics that are known already.

        Features are ranked by mutual information; those whose mean difference is 0 (dead ones) are passed over, and
        the sign of the others' says which side they are of: above 0 context, below 0 memory.

        Args:
            sae: the SAE; or {site: SAE}, and then all that follows is {site: ...} as well.
            mi: [F], mutual information of each feature with the behaviour, such as ``ss.mutual_information`` gives.
            mean_context: [F], functional values: mean activations over answers from the context.
            mean_memory: [F], over answers from memory.
            mean_difference: [F], tells the sides; by default mean_context - mean_memory.
            k: features of each site.
            share: as many as it takes for their sum to exceed this share of all mutual information (the paper's K).

        Raises:
            ValueError, TypeError: vectors that do not fit the SAE, NaN; neither or both of k and share.
        """
        selection = Selection(k, share)
        parts = {"mi": mi, "mean_context": mean_context, "mean_memory": mean_memory, "mean_difference": mean_difference}
        if not isinstance(sae, Mapping):
            return cls({None: sae}, {None: FeatureStatistics.checked(sae, *parts.values())}, selection)
        if not sae:
            raise ValueError("SPARE: no site was given")
        for name, part in parts.items():
            if (not isinstance(part, Mapping) and part is not None) or (part is not None and part.keys() != sae.keys()):
                raise ValueError(f"SPARE: {name} should be given for the sites of the SAEs, {list(sae)}")
        statistics = {
            site: FeatureStatistics.checked(each, *(None if part is None else part[site] for part in parts.values()))
            for site, each in sae.items()
        }
        return cls(sae, statistics, selection)

    def with_selection(self, k: int | None = None, share: float | None = None) -> "SPARE":
        """The same statistics, shared, with another number of features."""
        return SPARE(self.saes, self.statistics, Selection(k, share), self.about)

    def features(self, side: str) -> Any:
        """The selected features of "context" or "memory", by falling mutual information; {site: list} of several."""
        check_named("side", side, SIDES)
        return self._by_site({site: each.features(self.selection, side) for site, each in self.statistics.items()})

    def edit(self, toward: str = "memory", alpha: float = 2.0, form: str = "code") -> Any:
        """What ``plan`` lowers, as an Edit; {site: Edit} of several."""
        return self._by_site(self._edits(toward, alpha, form))

    def plan(self, toward: str = "memory", alpha: float = 2.0, form: str = "code") -> Any:
        """Steering toward answers from "memory" or from "context"; {site: plan} of several sites.

        Features of the other side are lowered by what they have, up to their mean there; features of this side are
        raised to their mean here. TopK SAEs are read without the mask. For ``ss.steer(..., positions="last_prompt")``.

        Args:
            alpha: how strongly.
            form: "code", the authors' program, with alpha inside of the limits: -min(f, alpha mean) and
                max(alpha mean - f, 0). "paper", equations 2 to 4, with alpha in front: -alpha min(f, mean) and
                alpha max(mean - f, 0).

        Raises:
            ValueError: another name, an alpha that is negative or not finite.
        """
        edits = self._edits(toward, alpha, form)
        return self._by_site({site: plan(self.saes[site], edit) for site, edit in edits.items()})

    def save(self, path: str | os.PathLike) -> Path:
        """Write everything but the SAEs as one safetensors file; returns the path."""
        return files.save(path, self.saes, self.statistics, self.selection, self.about)

    @classmethod
    def load(cls, path: str | os.PathLike, sae: SAE | Mapping[Any, SAE]) -> "SPARE":
        """Read what ``save`` wrote.

        Args:
            sae: the SAEs that it was made with, in the same form; their digests are compared.

        Raises:
            ValueError: another kind of file, a damaged one, other SAEs or sites.
        """
        saes = dict(sae) if isinstance(sae, Mapping) else {None: sae}
        return cls(saes, *files.load(path, saes))

    def __repr__(self) -> str:
        counts = (
            f"{'' if site is None else f'{site}: '}{len(context)} of context, {len(memory)} of memory"
            for site, (context, memory) in (
                (site, self.selection.features(each.mi, each.mean_difference)) for site, each in self.statistics.items()
            )
        )
        return f"SPARE({'; '.join(counts)})"

    def _edits(self, toward: str, alpha: float, form: str) -> dict[Any, Edit]:
        check_named("toward", toward, SIDES)
        check_named("form", form, FORMS)
        if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 <= alpha < math.inf:
            raise ValueError(f"SPARE: alpha should be a number from 0 on, got {alpha!r}")
        return {site: each.edit(self.selection, toward, float(alpha), form) for site, each in self.statistics.items()}

    def _by_site(self, found: dict) -> Any:
        return found[None] if None in found else found
