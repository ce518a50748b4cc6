"""A study of AlignSAE in one world: states, an SAE for each layer, swaps on validation, one test."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from patching import patched
from settings import DIRECTION_ALPHAS, ORDINARY_ALPHAS, RECIPE, SLOT_ALPHAS, TOP_FEATURES, Sets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsesteer import SAE, Site
from sparsesteer.datasets.biographies import Question
from sparsesteer.documents import read_document, write_document
from sparsesteer.methods.alignsae import DIRECTIONS, FORMS, AlignSAE, Recipe
from sparsesteer.methods.alignsae.answering import Answerer
from sparsesteer.methods.alignsae.controls import damaged, random_direction, random_slot
from sparsesteer.methods.alignsae.fitting import hook_name, places_of
from sparsesteer.methods.alignsae.matching import strict_match
from sparsesteer.methods.alignsae.measures import Concentration, binding_of, mean_codes, unexplained
from sparsesteer.methods.alignsae.ordinary import OrdinaryFeatures
from sparsesteer.methods.alignsae.released import INJECTIONS, released_answers
from sparsesteer.methods.alignsae.states import States, collect
from sparsesteer.methods.alignsae.swapping import (
    MakePlan,
    Swap,
    categories,
    judged,
    rate,
    summary,
    swapped,
    swaps_of,
)
from sparsesteer.methods.alignsae.training import Trainer


@dataclass
class Study:
    """Everything about one model and world; whatever is done leaves a file in the folder and is not done again."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sets: Sets
    layers: Sequence[int]
    recipe: Recipe = RECIPE
    validation_swaps: int = 240
    test_swaps: int = 600
    forms: Sequence[str] = FORMS
    top_features: Sequence[int] = TOP_FEATURES
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.answerer = Answerer(self.model, self.tokenizer, max_new_tokens=6)
        self.known = categories([q for some in self.sets.named().values() for q in some], len(self.sets.concepts))

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``make`` gives, kept in a file of that name."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_document(path, json.loads(json.dumps(make())))
            self.say(f"done: {name}")
        return read_document(path)

    def answers(self) -> dict[str, Any]:
        """Whether the unsteered model answers each question of validation and test rightly."""

        def make() -> dict[str, Any]:
            found = {}
            for name, questions in {"validation": self.sets.validation, **self.sets.test}.items():
                said = self.answerer.answers([q.prompt for q in questions])
                found[name] = [strict_match(q.answer, each) for q, each in zip(questions, said, strict=True)]
            return found

        return self.once("answers", make)

    @cached_property
    def states(self) -> dict[str, dict[int, States]]:
        """By set and layer."""
        places = places_of(self.model, self.layers)
        found = {}
        for name, questions in self.sets.named().items():
            prompts, labels = [q.prompt for q in questions], [q.concept for q in questions]
            answers = [q.answer for q in questions]
            found[name] = collect(self.answerer, places, prompts, labels, answers, self.folder / "states" / name, 256)
        return found

    def aligned(self, layer: int, on_epoch: Callable | None = None) -> AlignSAE:
        """The AlignSAE of a layer."""
        path = self.folder / "aligned" / f"layer-{layer}"
        if not path.exists():
            trainer = self._trainer(layer, len(self.sets.concepts), self.recipe, "alignsae")
            network = trainer.run(on_epoch)
            about = {"recipe": asdict(self.recipe), "history": trainer.progress.history}
            site = Site(hook_name=hook_name(places_of(self.model, [layer])[layer], layer))
            AlignSAE(network.sae(site), self.sets.concepts, network.heads, about).save(path)
            self.say(f"done: AlignSAE of layer {layer}")
        return AlignSAE.load(path)

    def ordinary(self, layer: int) -> SAE:
        """An SAE without slots: as many features in all, ReLU, reconstruction and sparsity, as many epochs."""
        path = self.folder / "ordinary" / f"layer-{layer}"
        if not path.exists():
            recipe = replace(
                self.recipe,
                free="relu",
                n_free=self.recipe.n_free + len(self.sets.concepts),
                stage_one=self.recipe.epochs,
            )
            network = self._trainer(layer, 0, recipe, "ordinary").run()
            network.sae(Site(hook_name=f"blocks.{layer}.hook_resid_post")).save(path)
            self.say(f"done: ordinary SAE of layer {layer}")
        return SAE.load_from_disk(path)

    def _trainer(self, layer: int, n_concepts: int, recipe: Recipe, name: str) -> Trainer:
        folder = self.folder / "checkpoints" / f"{name}-{layer}"
        recipe = replace(recipe, checkpoint_every=10)
        return Trainer(
            self.states["train"][layer], n_concepts, recipe, names=self.sets.concepts,
            validation=self.states["validation"][layer] if n_concepts else None, folder=folder,
        )  # fmt: skip

    def binding(self, layer: int) -> dict[str, Any]:
        """How well slots and ordinary features tell the concept, and how few features respond to one."""

        def make() -> dict[str, Any]:
            n = len(self.sets.concepts)
            aligned, ordinary = self.aligned(layer), self.ordinary(layer)
            found: dict[str, Any] = {"layer": layer}
            for name, by_layer in self.states.items():
                binding = binding_of(aligned.sae, by_layer[layer], n)
                found[name] = {"accuracy": binding.accuracy, "diagonal": binding.diagonal}
                found[name]["confusion"] = binding.shares.tolist()
            test = next(iter(self.sets.test))
            for name, sae in (("alignsae", aligned.sae), ("ordinary", ordinary)):
                measured = Concentration.of(mean_codes(sae, self.states[test][layer], n))
                found[name] = {
                    "effective_features": float(measured.effective_features.mean()),
                    "top_share": float(measured.top_share.mean()),
                    "unexplained": unexplained(sae, self.states[test][layer]),
                }
            for count in self.top_features:
                features = OrdinaryFeatures.fit(ordinary, self.states["train"][layer], n, count)
                found["ordinary"][f"accuracy_top_{count}"] = {
                    name: features.binding(self.states[name][layer]).accuracy for name in self.sets.test
                }
            return found

        return self.once(f"binding-{layer}", make)

    def validation(self, layer: int, form: str) -> dict[str, Any]:
        """Strict success of every alpha on swaps of validation questions."""

        def make() -> dict[str, Any]:
            aligned = self.aligned(layer)
            alphas = DIRECTION_ALPHAS if form in DIRECTIONS else SLOT_ALPHAS
            return {
                str(alpha): self._on_validation(layer, lambda s, t, a=alpha: aligned.plan(s, t, a, form))
                for alpha in alphas
            }

        return self.once(f"validation-{layer}-{form}", make)

    def validation_ordinary(self, layer: int, count: int, reconstruct: bool) -> dict[str, Any]:
        """The same of the best features of an ordinary SAE, alpha in units of their means."""

        def make() -> dict[str, Any]:
            n = len(self.sets.concepts)
            features = OrdinaryFeatures.fit(self.ordinary(layer), self.states["train"][layer], n, count)
            return {
                str(alpha): self._on_validation(layer, lambda s, t, a=alpha: features.plan(s, t, a, reconstruct))
                for alpha in ORDINARY_ALPHAS
            }

        return self.once(f"validation-{layer}-ordinary-{count}{'-decoded' if reconstruct else ''}", make)

    def _on_validation(self, layer: int, plan: MakePlan) -> dict[str, float]:
        questions = self.sets.validation
        swaps = swaps_of(questions, self.validation_swaps)
        outcomes = swapped(self.answerer, layer, questions, swaps, plan, self.known)
        return {name: sum(getattr(o, name) for o in outcomes) / len(outcomes) for name in ("strict", "lenient", "kept")}

    def best_alpha(self, found: dict[str, Any]) -> float:
        """The smallest alpha of the highest strict success."""
        return float(max(found, key=lambda alpha: (found[alpha]["strict"], -float(alpha))))

    def chosen_layer(self, form: str = "slot") -> int:
        """The layer of the highest strict success on validation, the first of equals."""
        scores = {layer: max(each["strict"] for each in self.validation(layer, form).values()) for layer in self.layers}
        return max(scores, key=lambda layer: (scores[layer], -layer))

    def test(self, layer: int) -> dict[str, Any]:
        """Every form, its alpha chosen on validation, beside controls and ordinary features, on the same swaps."""
        contenders = self._contenders(layer)
        found: dict[str, Any] = {}
        for name, (alpha, plan) in contenders.items():
            found[name] = self.once(f"test-{layer}-{name}", lambda a=alpha, p=plan: self._tested(layer, a, p))
        return found

    def _contenders(self, layer: int) -> dict[str, tuple[float, MakePlan]]:
        aligned, n = self.aligned(layer), len(self.sets.concepts)
        found: dict[str, tuple[float, MakePlan]] = {}
        for form in self.forms:
            alpha = self.best_alpha(self.validation(layer, form))
            found[form] = alpha, lambda s, t, a=alpha, f=form: aligned.plan(s, t, a, f)
        alpha = found["slot"][0]
        found["control_random_slot"] = alpha, random_slot(aligned, alpha, "slot")
        found["control_random_direction"] = alpha, random_direction(aligned, alpha)
        for count in self.top_features:
            features = OrdinaryFeatures.fit(self.ordinary(layer), self.states["train"][layer], n, count)
            for decoded in (False, True):
                alpha = self.best_alpha(self.validation_ordinary(layer, count, decoded))
                name = f"ordinary_top_{count}{'_decoded' if decoded else ''}"
                found[name] = alpha, lambda s, t, a=alpha, f=features, d=decoded: f.plan(s, t, a, d)
        return found

    def _tested(self, layer: int, alpha: float, plan: MakePlan) -> dict[str, Any]:
        right = self.answers()
        found: dict[str, Any] = {"alpha": alpha}
        for name, questions in self.sets.test.items():
            swaps = swaps_of(questions, self.test_swaps)
            outcomes = swapped(self.answerer, layer, questions, swaps, plan, self.known)
            found[name] = summary(outcomes, questions, right[name])
            found[name]["by_target"] = {
                concept: rate([o.strict for o in some], [questions[o.question].entity for o in some]).mean
                for number, concept in enumerate(self.sets.concepts)
                if (some := [o for o in outcomes if o.target == number])
            }
            hurt = damaged(self.answerer, layer, questions, right[name], plan, len(self.sets.concepts))
            damage = rate([wrong for _, wrong in hurt], [questions[place].entity for place, _ in hurt])
            found[name]["damage"] = {"mean": damage.mean, "low": damage.low, "high": damage.high, "n": damage.n}
            found[name]["outcomes"] = [o.strict for o in outcomes]
            found[name]["damaged"] = [wrong for _, wrong in hurt]
        return found

    def carried(self, layer: int, most: int = 240) -> dict[str, Any]:
        """How far the answer stands in the state already: the share of answers that follow another entity's state.

        The state of a question's last token is replaced by that of the same wording about somebody else.
        """

        def make() -> dict[str, Any]:
            name, questions = next(iter(self.sets.test.items()))
            pairs = list(zip(questions, questions[len(questions) // 2 :], strict=False))
            pairs = [(q, other) for q, other in pairs if q.concept == other.concept and q.answer != other.answer][:most]
            said = patched(self.answerer, layer, [q.prompt for q, _ in pairs], [o.prompt for _, o in pairs])
            follow = [strict_match(o.answer, each) for (_, o), each in zip(pairs, said, strict=True)]
            stay = [strict_match(q.answer, each) for (q, _), each in zip(pairs, said, strict=True)]
            return {"set": name, "n": len(pairs), "follow": sum(follow) / len(pairs), "stay": sum(stay) / len(pairs)}

        return self.once(f"carried-{layer}", make)

    def released(self, layer: int, most: int = 120) -> dict[str, Any]:
        """Latent decode where the released scripts inject it, one prompt at a time."""

        def make() -> dict[str, Any]:
            aligned, found = self.aligned(layer), {}
            alpha = self.best_alpha(self.validation(layer, "latent_decode"))
            name, questions = next(iter(self.sets.test.items()))
            swaps = swaps_of(questions, most)
            for injection in INJECTIONS:
                if injection == "off_by_one" and layer + 1 not in self.layers:
                    continue
                outcomes = [
                    judged(questions[s.question], s, self._released(aligned, layer, s, questions, alpha, injection),
                           self.known)
                    for s in swaps
                ]  # fmt: skip
                found[injection] = summary(outcomes, questions) | {"alpha": alpha, "set": name}
            return found

        return self.once(f"released-{layer}", make)

    def _released(
        self, aligned: AlignSAE, layer: int, swap: Swap, questions: Sequence[Question], alpha: float, injection: str
    ) -> str:
        (answer,) = released_answers(
            self.answerer, aligned, layer, [questions[swap.question].prompt], swap.source, swap.target, alpha,
            injection=injection,
        )  # fmt: skip
        return answer
