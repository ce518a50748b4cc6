"""AlignSAE: an SAE with a slot for every concept."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsesteer import reference
from sparsesteer.activations import Slots
from sparsesteer.methods.alignsae import files
from sparsesteer.methods.alignsae.fitting import fit
from sparsesteer.methods.alignsae.interventions import swap_plan
from sparsesteer.methods.alignsae.network import ValueHeads
from sparsesteer.methods.alignsae.recipe import Recipe
from sparsesteer.methods.spare.measuring import codes_of
from sparsesteer.ops.border import check_last
from sparsesteer.plans import SteeringPlan
from sparsesteer.sae import SAE
from sparsesteer.site import Site

Concept = int | str


class AlignSAE:
    """An SAE whose last R features are slots: slot r is near 1 where concept r is asked for, and near 0 elsewhere.

        aligned = ss.AlignSAE.fit(model, tokenizer, prompts, labels, 3, concepts=["birth_date", "employer"])
        with ss.steer(model, aligned.plan("birth_date", "employer"), positions="last_prompt"):
            model.generate(**inputs)

    arXiv 2512.02004. Made by ``fit`` or ``load``.

    Args:
        sae: an SAE whose activation is ``ss.Slots(n, ...)``.
        concepts: names of the n slots.
        heads: that tell an answer's first token from a slot, where they were trained.
        about: how it came about, as JSON.

    Raises:
        ValueError: an SAE without slots, or with another number of them than there are concepts; a name twice.
    """

    def __init__(
        self,
        sae: SAE,
        concepts: Sequence[str],
        heads: ValueHeads | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(sae, SAE) or not isinstance(sae.activation, Slots) or sae.activation.n < 1:
            raise ValueError("AlignSAE: an SAE of the activation ss.Slots(n, ...) is needed; fit and load give one")
        if len(concepts) != sae.activation.n or len(set(concepts)) < len(concepts):
            raise ValueError(f"AlignSAE: {sae.activation.n} slots need as many different names, got {list(concepts)}")
        self.sae, self.concepts, self.heads = sae, tuple(concepts), heads
        self.about = dict(about or {})

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[str],
        labels: Sequence[Concept],
        site: Any,
        *,
        concepts: Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        validation: tuple[Sequence[str], Sequence[Concept]] | None = None,
        base: SAE | None = None,
        recipe: Recipe | None = None,
        folder: str | os.PathLike | None = None,
        batch_size: int = 64,
        device: torch.device | str | None = None,
        progress: bool = True,
    ) -> "AlignSAE":
        """From a model's states at the last token of labelled prompts.

        Args:
            model: of transformers, in evaluation mode.
            labels: the concept of each prompt, as a number or by its name.
            site: where the states are read and the slots act, as ``ss.steer`` takes it: a block's number (the residual
                after it), a hook point, a module's path.
            concepts: their names; by default the labels' own, sorted, or their numbers.
            answers: what is right to say after each prompt; value heads are trained where they are given.
            validation: (prompts, labels) that the best epoch is chosen on; the training prompts by default, as in the
                released code.
            base: an SAE of this site to start from, whose features become the free ones.
            recipe: ``sparsesteer.methods.alignsae.Recipe``; the published numbers by default.
            folder: where states and checkpoints are kept. The same call goes on where one was interrupted.
            batch_size: prompts that the model reads together.
            device: where the SAE is trained; the model's by default.
            progress: a bar with the losses on stderr, where that is a terminal.

        Raises:
            ValueError, TypeError: arguments that do not fit; labels outside of the concepts, a concept of no prompt or
                of one; a folder of other prompts, states or weights' shapes.
            RuntimeError: a loss that is NaN or infinite; the checkpoint before it stays.
        """
        return cls(
            *fit(
                model, tokenizer, prompts, labels, site, concepts, answers, validation, base, recipe or Recipe(),
                folder, batch_size, device, progress,
            )
        )  # fmt: skip

    @property
    def n_concepts(self) -> int:
        """R."""
        return len(self.concepts)

    def feature(self, concept: Concept) -> int:
        """The SAE's feature that is a concept's slot.

        Raises:
            ValueError: there is no such concept.
        """
        return self.sae.d_sae - self.n_concepts + self.number(concept)

    def number(self, concept: Concept) -> int:
        """A concept's number from its name, or itself. Raises ValueError for none of them."""
        if isinstance(concept, str) and concept in self.concepts:
            return self.concepts.index(concept)
        if isinstance(concept, int) and not isinstance(concept, bool) and 0 <= concept < self.n_concepts:
            return concept
        raise ValueError(
            f"AlignSAE: there is no concept {concept!r}; there are 0 to {self.n_concepts - 1}: "
            f"{', '.join(self.concepts)}"
        )

    def slots(self, h: Tensor) -> Tensor:
        """The slots' values [..., R] of states h [..., D]; no other feature is encoded."""
        check_last("AlignSAE.slots", "h", h, self.sae.d_in)
        x = reference.read_input(h.reshape(-1, self.sae.d_in), None)
        found = codes_of(self.sae.to(h.device), x, self.sae.d_sae - self.n_concepts, self.sae.d_sae)
        return found.view(*h.shape[:-1], self.n_concepts).to(h.dtype)

    def concept_of(self, h: Tensor) -> Tensor:
        """int64 [...], which slot is largest in states h [..., D]."""
        return self.slots(h).argmax(-1)

    def first_token(self, h: Tensor, concept: Concept) -> Tensor:
        """int64 [...], the token that a concept's value head expects the answer to begin with.

        Raises:
            ValueError: there are no value heads, because no answers were given to ``fit``.
        """
        if self.heads is None:
            raise ValueError("AlignSAE: there are no value heads; give answers to AlignSAE.fit")
        number = self.number(concept)
        values = self.slots(h)[..., number]
        with torch.no_grad():
            logits = self.heads.to(h.device)(values.reshape(-1).float(), number)
        return self.heads.tokens[logits.argmax(-1)].view(values.shape)

    def plan(self, source: Concept, target: Concept, alpha: float = 2.0, form: str = "slot") -> SteeringPlan:
        """Steering that makes the model answer about one concept where it was asked for another.

        For ``ss.steer(..., positions="last_prompt")``, at the site that the states were read at. Of a state h, its
        slots z, and their decoder rows d:

        - "slot" (ours): slot s becomes 0 and slot t alpha; the SAE's error stays.
        - "move" (ours): h + z_s (alpha d_t - d_s). Like "slot", and where s is not asked for nothing happens.
        - "latent_decode": the same edit, and h is replaced by what is decoded: the paper's swap, by the released code.
        - "decoder_column": h + alpha ||h|| d_t / ||d_t||.
        - "decoder_column_both": h + alpha ||h|| (d_t / ||d_t|| - d_s / ||d_s||).
        - "orthogonal": the same with d_t less its part along d_s.
        - "mean_diff": h + alpha ||h|| (d_t - d_s) / ||d_t - d_s||.

        Args:
            source: the concept s that is asked for, by number or name.
            target: the concept t that is to be answered.
            alpha: the value that the target's slot gets (1 is what it was trained to have), or the length of the
                addition as a share of the state's.

        Raises:
            ValueError: no such concept or form, source and target the same, an alpha that is not finite.
        """
        return swap_plan(self.sae, self.feature(source), self.feature(target), alpha, form)

    def save(self, path: str | os.PathLike) -> Path:
        """Write a new folder, which ``SAE.load_from_disk`` reads too; returns its path.

        Raises:
            FileExistsError: there is something at ``path`` already.
        """
        return files.save(path, self.sae, self.concepts, self.heads, self.about)

    @classmethod
    def load(cls, path: str | os.PathLike, site: Site | None = None) -> "AlignSAE":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: a folder without slots, a damaged one, concepts of other weights.
        """
        return cls(*files.load(path, site))

    def __repr__(self) -> str:
        free = self.sae.d_sae - self.n_concepts
        return f"AlignSAE({', '.join(self.concepts)}; {free} free features, D={self.sae.d_in}, {self.sae.site})"
