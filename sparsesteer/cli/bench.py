"""``sparsesteer bench``: steer beside its competitors on this machine."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.text import Text

from sparsesteer.benchmarks import bench_decoding, bench_steer, report
from sparsesteer.cli.border import DebugOption, loading, one_line_errors, progress
from sparsesteer.cli.models import DEMO, DEMO_SAE_FOLDER, SMOLLM2, load_model, load_sae


@one_line_errors
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes and rounds: 2 to 3 minutes on 2 cores.")] = False,
    decoding: Annotated[
        bool, typer.Option("--decoding", help="Steered against unsteered decoding of SmolLM2 instead.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every row to this file.")] = None,
    debug: DebugOption = False,
) -> None:
    """Compare the speed of steering with plain torch on gathered rows and with whole-SAE methods.

    Results are checked first: a wrong one ends the command with exit code 1, and no speed is shown. Other work on
    the machine spoils the figures.

    Examples:

        sparsesteer bench --quick

        sparsesteer bench --quick --json bench.json

        sparsesteer bench --decoding
    """
    rows = _decoding() if decoding else _steer(quick)
    if json_file is not None:
        report.write_json(rows, json_file)


def _steer(quick: bool) -> list[dict[str, object]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, notes = bench_steer.measure(bench_steer.cases(quick, device), device, quick, progress)
    report.print_rows(rows)
    for note in notes:
        Console().print(Text(note, style="yellow"))
    return [row.as_json() for row in rows]


def _decoding() -> list[dict[str, object]]:
    with loading(SMOLLM2):
        model, _ = load_model(SMOLLM2)
    device, width = str(model.device), model.config.hidden_size  # type: ignore[union-attr]
    if DEMO_SAE_FOLDER.is_dir():
        plan, sae = bench_decoding.plan_of(load_sae(DEMO, SMOLLM2)).to(device), "the demonstration SAE"
    else:
        plan, sae = bench_decoding.random_plan(width, device), "a random SAE"
    console = Console()
    results = []
    with console.status("Timing ..."):
        results.append(bench_decoding.measure(model, "SmolLM2-135M-Instruct", plan, sae, bench_decoding.LAYER))
        results.append(bench_decoding.measure_tiny(device))
    for result in results:
        console.print(Text(str(result)))
    return [result.as_json() for result in results]
