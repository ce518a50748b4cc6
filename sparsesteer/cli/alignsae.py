"""``sparsesteer alignsae``: train an SAE with a slot for every concept, measure its slots, swap concepts."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from sparsesteer.cli.border import DebugOption, JsonOption, ModelOption, loading, one_line_errors, print_json
from sparsesteer.cli.models import SMOLLM2, load_model, load_sae
from sparsesteer.datasets.biographies import Question, read_questions
from sparsesteer.methods.alignsae import FORMS, AlignSAE, LossWeights, Recipe
from sparsesteer.methods.alignsae.answering import Answerer
from sparsesteer.methods.alignsae.matching import strict_match
from sparsesteer.methods.alignsae.measures import Binding
from sparsesteer.methods.alignsae.swapping import categories, summary, swapped, swaps_of
from sparsesteer.model.places import Place
from sparsesteer.model.sites import ModelSites

app = typer.Typer(help="Train an SAE with a slot for every concept, and swap concepts.", no_args_is_help=True)
QuestionsArgument = Annotated[Path, typer.Argument(help="JSONL: prompt, concept, answers by concept, split, template.")]
FolderArgument = Annotated[Path, typer.Argument(help="Folder of the AlignSAE.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Prompts that the model reads together.")]


@app.command()
@one_line_errors
def train(
    folder: FolderArgument,
    questions: QuestionsArgument,
    layer: Annotated[int, typer.Option("--layer", "-l", help="Block behind which states are read and changed.")],
    model: ModelOption = SMOLLM2,
    base: Annotated[str | None, typer.Option(help="SAE to start from, as --sae of other commands.")] = None,
    n_free: Annotated[int, typer.Option(min=1, help="Free features.")] = Recipe.n_free,
    free: Annotated[str, typer.Option(help="Their activation: identity, relu or topk.")] = Recipe.free,
    k: Annotated[int, typer.Option(min=1, help="Of topk.")] = Recipe.k,
    bind: Annotated[str, typer.Option(help="mse, or ce.")] = Recipe.bind,
    binding: Annotated[float, typer.Option(help="Weight of binding.")] = LossWeights.binding,
    orthogonality: Annotated[float, typer.Option(help="Weight of orthogonality.")] = LossWeights.orthogonality,
    stage_one: Annotated[int, typer.Option(min=0, help="Epochs without slots.")] = Recipe.stage_one,
    stage_two: Annotated[int, typer.Option(min=0, help="Epochs with them.")] = Recipe.stage_two,
    batch_size: Annotated[int, typer.Option(min=2, help="States of a step.")] = Recipe.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = Recipe.learning_rate,
    patience: Annotated[int | None, typer.Option(min=1, help="Epochs without a better one, then stop.")] = None,
    seed: int = 0,
    debug: DebugOption = False,
) -> None:
    """Train on questions of split and template "train". Called again it goes on where it was interrupted.

    Example:

        sparsesteer alignsae train aligned questions.jsonl --layer 15 --n-free 4096
    """
    concepts, asked = read_questions(questions)
    some = [q for q in asked if q.split == q.template == "train"]
    held_out = [q for q in asked if q.split == q.template == "validation"]
    if not some:
        raise ValueError(f"{questions} has no question of split and template train")
    recipe = Recipe(
        n_free=n_free,
        free=free,
        k=k,
        bind=bind,
        weights=LossWeights(binding=binding, orthogonality=orthogonality),
        stage_one=stage_one,
        stage_two=stage_two,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=patience,
        seed=seed,
    )
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists already; remove it, or choose another name")
    with loading(model):
        network, tokenizer = load_model(model)
        start = None if base is None else load_sae(base, model)
    aligned = AlignSAE.fit(
        network,
        tokenizer,
        [q.prompt for q in some],
        [q.concept for q in some],
        layer,
        concepts=concepts,
        answers=[q.answer for q in some],
        validation=([q.prompt for q in held_out], [q.concept for q in held_out]) if held_out else None,
        base=start,
        recipe=recipe,
        folder=folder.with_name(f"{folder.name}.work"),
    )
    aligned.save(folder)
    print(aligned)


@app.command("eval")
@one_line_errors
def evaluate(
    folder: FolderArgument,
    questions: QuestionsArgument,
    model: ModelOption = SMOLLM2,
    batch_size: BatchOption = 64,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Slot accuracy and diagonal accuracy for each split of entities and of wordings.

    Example:

        sparsesteer alignsae eval aligned questions.jsonl
    """
    aligned = AlignSAE.load(folder)
    asked = _questions(questions, aligned)
    with loading(model):
        answerer = Answerer(*load_model(model))
    place = ModelSites.of(answerer.model).resolve(aligned.sae.site)
    rows: list[dict[str, Any]] = []
    for split, template in dict.fromkeys((q.split, q.template) for q in asked):
        some = [q for q in asked if (q.split, q.template) == (split, template)]
        binding = _binding(aligned, answerer, place, some, batch_size)
        row = {"split": split, "template": template, "questions": len(some)}
        rows.append(row | {"accuracy": binding.accuracy, "diagonal": binding.diagonal})
    if json:
        print_json(rows)
        return
    _print(("entities", "wordings", "questions", "slot accuracy", "diagonal"), [
        (r["split"], r["template"], str(r["questions"]), f"{r['accuracy']:.3f}", f"{r['diagonal']:.3f}") for r in rows
    ])  # fmt: skip


@app.command()
@one_line_errors
def swap(
    folder: FolderArgument,
    questions: QuestionsArgument,
    model: ModelOption = SMOLLM2,
    alpha: Annotated[str, typer.Option(help="One or several, as in 1,2,5.")] = "1,2,5",
    form: Annotated[str, typer.Option(help=f"One or several of {', '.join(FORMS)}.")] = "slot,latent_decode",
    split: Annotated[str | None, typer.Option(help="Of the entities.", show_default="all")] = None,
    template: Annotated[str | None, typer.Option(help="Of the wordings.", show_default="all")] = None,
    most: Annotated[int, typer.Option(min=1, help="Swaps, at most.")] = 500,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 12,
    batch_size: BatchOption = 64,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Success of swaps between all concepts: strict, lenient, and of questions that are answered rightly unsteered.

    Example:

        sparsesteer alignsae swap aligned questions.jsonl --split test --template unseen --alpha 1,2
    """
    aligned = AlignSAE.load(folder)
    asked = _questions(questions, aligned)
    some = [q for q in asked if split in (None, q.split) and template in (None, q.template)]
    swaps = swaps_of(some, most)
    if not swaps:
        raise ValueError(f"{questions} has no swaps of split {split} and template {template}")
    with loading(model):
        answerer = Answerer(*load_model(model), max_new_tokens)
    said = answerer.answers([q.prompt for q in some], batch_size)
    right = [strict_match(q.answer, answer) for q, answer in zip(some, said, strict=True)]
    known = categories(asked, aligned.n_concepts)
    rows: list[dict[str, Any]] = []
    for name in form.split(","):
        for value in (float(each) for each in alpha.split(",")):
            plan = partial(aligned.plan, alpha=value, form=name)
            outcomes = swapped(answerer, aligned.sae.site, some, swaps, plan, known, batch_size)
            rows.append({"form": name, "alpha": value, **summary(outcomes, some, right)})
    if json:
        print_json(rows)
        return
    measures = ("strict", "strict_of_right", "lenient", "category", "kept")
    _print(("form", "alpha", *measures), [
        (r["form"], f"{r['alpha']:g}", *(f"{100 * r[m]['mean']:.1f}" for m in measures)) for r in rows
    ])  # fmt: skip


def _questions(path: Path, aligned: AlignSAE) -> list[Question]:
    concepts, asked = read_questions(path)
    if tuple(concepts) != aligned.concepts:
        raise ValueError(
            f"{path} asks for {', '.join(concepts)}, the AlignSAE has slots for {', '.join(aligned.concepts)}"
        )
    return asked


def _binding(aligned: AlignSAE, answerer: Answerer, place: Place, some: list[Question], batch_size: int) -> Binding:
    predicted = []
    for start in range(0, len(some), batch_size):
        prompts = [q.prompt for q in some[start : start + batch_size]]
        predicted.append(aligned.concept_of(answerer.last_states(prompts, {"read": place})["read"]))
    labels = torch.tensor([q.concept for q in some])
    return Binding.of(torch.cat(predicted), labels, aligned.n_concepts)


def _print(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table()
    for name in head:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
