"""``sparsesteer spare``: a study of how well SPARE and others move answers between context and memory."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sparsesteer.cli.border import DebugOption, ModelOption, loading, note, one_line_errors, progress
from sparsesteer.cli.models import SMOLLM2, load_model, load_sae
from sparsesteer.datasets import geography, macnoise, nq_swap, read_conflicts
from sparsesteer.documents import read_document
from sparsesteer.methods.evaluation.contenders import contenders
from sparsesteer.methods.evaluation.prefilled import PrefilledAnswerer
from sparsesteer.methods.evaluation.prompts import known_closed_book
from sparsesteer.methods.evaluation.protocol import Protocol
from sparsesteer.methods.evaluation.report import write_report
from sparsesteer.methods.evaluation.results import OURS, UNSTEERED
from sparsesteer.methods.evaluation.scores import MEASURES
from sparsesteer.methods.evaluation.study import Study
from sparsesteer.methods.spare.statistics import SIDES

SETS: dict[str, Callable[[], list[dict]]] = {"geography": geography, "nq-swap": nq_swap, "macnoise": macnoise}

app = typer.Typer(help="Study how SPARE and others move answers between context and memory.", no_args_is_help=True)
FolderArgument = Annotated[Path, typer.Argument(help="Folder of the study.")]
MethodOption = Annotated[list[str] | None, typer.Option("--method", help="Only this one and none; repeatable.")]


@app.command()
@one_line_errors
def fit(
    folder: FolderArgument,
    sae: Annotated[list[str], typer.Option("--sae", "-s", help="BLOCK=SAE, as in 16=demo; repeatable.")],
    model: ModelOption = SMOLLM2,
    data: Annotated[str, typer.Option(help=f"{', '.join(SETS)}, or a JSONL file of NQ-Swap's fields.")] = "geography",
    dense: Annotated[str, typer.Option(help="Blocks that methods without SAEs may use besides, as in 14,18.")] = "",
    kinds: Annotated[str, typer.Option(help="Of the demonstrations: context and answer, s or o.")] = "ss,so,ss,so",
    n_fit: Annotated[int, typer.Option(min=1, help="Conflicts that are fitted on, at most.")] = Protocol.n_fit,
    n_dev: Annotated[int, typer.Option(min=1, help="Conflicts that settings are chosen on, at most.")] = Protocol.n_dev,
    n_test: Annotated[int, typer.Option(min=1, help="Conflicts that are tested, at most.")] = Protocol.n_test,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, at most.")] = Protocol.max_new_tokens,
    spread: Annotated[
        bool, typer.Option("--spread", help="Ask each conflict behind the demonstrations of one seed, not of all.")
    ] = False,
    budget: Annotated[int, typer.Option(min=1, help="Settings for each method and direction.")] = Protocol.budget,
    all_questions: Annotated[
        bool, typer.Option("--all", help="Also questions that the model cannot answer without context.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Begin a study, and fit SPARE. Called again it goes on where it was interrupted.

    Example:

        sparsesteer spare fit study --sae 16=demo
    """
    saes = _sae_names(sae)
    protocol = replace(
        Protocol(),
        kinds=tuple(each for each in kinds.split(",") if each),
        spread=spread,
        n_fit=n_fit,
        n_dev=n_dev,
        n_test=n_test,
        budget=budget,
        max_new_tokens=max_new_tokens,
        in_context=data == "macnoise",
    )
    blocks = [int(each) for each in dense.split(",") if each]
    given = [f"--sae {shlex.quote(each)}" for each in sae] + [f"--model {model}", f"--data {data}", f"--kinds {kinds}"]
    given += [f"--dense {dense}"] * bool(dense) + ["--all"] * all_questions + ["--spread"] * spread
    given += [f"--n-fit {n_fit}", f"--n-dev {n_dev}", f"--n-test {n_test}", f"--budget {budget}"]
    given += [f"--max-new-tokens {max_new_tokens}"]
    about = {
        "model": model,
        "saes": {str(block): name for block, name in saes.items()},
        "dense": blocks,
        "data": data,
        "commands": [
            f"sparsesteer spare fit {folder.name} " + " ".join(given),
            f"sparsesteer spare sweep {folder.name}",
            f"sparsesteer spare eval {folder.name}",
        ],
    }
    conflicts = folder / "conflicts.jsonl"
    if conflicts.exists():
        examples = read_conflicts(conflicts)
    else:
        examples = SETS[data]() if data in SETS else read_conflicts(data)
        if not all_questions:
            with loading(model):
                network, tokenizer = load_model(model)
            answerer = PrefilledAnswerer(network, tokenizer, protocol.max_new_tokens, most_batches=1)
            total = len({example["question"] for example in examples})
            examples = known_closed_book(answerer, examples)
            note(f"{len({example['question'] for example in examples})} of {total} questions are known")
    Study.begin(folder, examples, protocol, about)
    print(_study(folder).fit().spare)


@app.command()
@one_line_errors
def sweep(folder: FolderArgument, method: MethodOption = None, debug: DebugOption = False) -> None:
    """Choose every method's setting on dev, each within the same budget of trials.

    Example:

        sparsesteer spare sweep study --method SPARE --method ActAdd
    """
    study = _study(folder)
    fitted = study.fit()
    log = study.log
    some = _chosen(contenders(fitted), method)
    runs = [(name, side) for name, each in some.items() for side in each.sides]
    for name, toward in progress(runs, "Trying"):
        study.sweep(some[name], toward, log)
    for toward in SIDES:
        study.scan(some[OURS], toward, log)
    table = Table(title="best on dev")
    for heading in ("method", "toward", "EM", "setting"):
        table.add_column(heading)
    for name, toward in runs:
        best = log.best(name, toward)
        assert best is not None
        table.add_row(name, toward, f"{best.em:.1%}", str(best.setting))
    Console().print(table)


@app.command("eval")
@one_line_errors
def evaluate(
    folder: FolderArgument,
    method: MethodOption = None,
    report: Annotated[Path | None, typer.Option(help="Folder of the report.", show_default="the study's")] = None,
    debug: DebugOption = False,
) -> None:
    """Answer the test split once, under the settings chosen, and write the report.

    Example:

        sparsesteer spare eval study --report report
    """
    study = _study(folder)
    fitted = study.fit()
    lines = study.test(_chosen(contenders(fitted), method), study.log, progress)
    found = write_report(study, fitted, lines, report or folder)
    table = Table(title="EM on test")
    for heading in ("toward", "method", "EM", "95 %"):
        table.add_column(heading)
    for row in found["table"]:
        em = row["measures"][MEASURES[row["toward"]][0]]
        table.add_row(row["toward"], row["method"], f"{em['mean']:.1%}", f"{em['low']:.1%} to {em['high']:.1%}")
    Console().print(table)
    print(f"written: {report or folder}")


def _study(folder: Path) -> Study:
    """The study of a folder, with its model and SAEs."""
    about = read_document(folder / "study.json")
    with loading(f"{about['model']} and its SAEs"):
        network, tokenizer = load_model(about["model"])
        saes = {int(block): load_sae(name, about["model"]) for block, name in about["saes"].items()}
    return Study(folder, network, tokenizer, saes, about["dense"])


def _sae_names(given: list[str]) -> dict[int, str]:
    """{block: name} of texts like 16=demo, blocks in order."""
    found = {}
    for text in given:
        block, _, name = text.partition("=")
        if not block.isdecimal() or not name:
            raise ValueError(f"--sae {text!r}: give a block and an SAE, as in 16=demo")
        found[int(block)] = name
    return dict(sorted(found.items()))


def _chosen(known: dict, names: list[str] | None) -> dict:
    """The methods of these names, SPARE and no steering, which the others are compared with; all of them by default."""
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ValueError(f"--method: there is no {unknown[0]}; there are {', '.join(known)}")
    return known if names is None else {name: known[name] for name in known if name in (OURS, UNSTEERED, *names)}
