"""``sparsesteer bench``: every op beside its competitors on this machine."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.text import Text

from sparsesteer.benchmarks import bench_decoding, goals, harness, plot, report, suite
from sparsesteer.cli.border import DebugOption, loading, one_line_errors, progress
from sparsesteer.cli.models import DEMO, DEMO_SAE_FOLDER, SMOLLM2, load_model, load_sae


@one_line_errors
def bench(
    op: Annotated[
        list[str] | None, typer.Option("--op", help=f"Only this op; repeatable: {', '.join(suite.BENCHES)}.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer shapes and rounds: under 3 minutes on 2 cores.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every row to this file.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw ratios and % of the limit into this file, e.g. bench.png.")
    ] = None,
    decoding: Annotated[
        bool, typer.Option("--decoding", help="Steered against unsteered decoding of SmolLM2 instead.")
    ] = False,
    tuning: Annotated[
        bool, typer.Option("--tune", help="Find the Triton kernels' best block sizes on this GPU instead.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Compare the speed of every op with plain torch, with SAELens, and with what this machine can do.

    Results are checked first: a wrong one ends the command with exit code 1, and no speed is shown. Other work on
    the machine spoils the figures.

    Examples:

        sparsesteer bench --quick

        sparsesteer bench --op encode --op decode --json bench.json --plot bench.png

        sparsesteer bench --decoding
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if tuning:
        _tune(device, json_file)
        return
    rows = _decoding() if decoding else _ops(op or list(suite.BENCHES), device, quick)
    if json_file is not None:
        report.write_json(rows, json_file)
    if plot_file is not None:
        plot.draw(rows, plot_file)


def _ops(names: list[str], device: str, quick: bool) -> list[dict[str, object]]:
    unknown = set(names) - set(suite.BENCHES)
    if unknown:
        raise ValueError(f"there is no benchmark of {min(unknown)}; there is one of {', '.join(suite.BENCHES)}")
    run = harness.Run(device, quick, compiles=not quick)
    rows = []
    for name in names:
        bench = suite.BENCHES[name]
        rows += harness.measure(bench, bench.cases(quick, device), run, progress)
    report.print_rows(rows)
    records = [row.as_json() for row in rows]
    for line in goals.reached(records):
        print(line)
    for note in run.notes:
        Console().print(Text(note, style="yellow"), soft_wrap=True)
    return records


def _tune(device: str, target: Path | None) -> None:
    if device == "cpu":
        print("nothing to tune: only the Triton kernels have block sizes to choose, and there is no CUDA device")
        return
    from sparsesteer.benchmarks import tune  # triton is there where CUDA is

    print(f"wrote {tune.write_table(target, progress)}")


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
