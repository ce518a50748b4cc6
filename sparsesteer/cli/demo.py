"""``sparsesteer demo``: a real model steered through a real SAE, with text, speed and a picture."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sparsesteer.cli.border import (
    DebugOption,
    JsonOption,
    ModelOption,
    loading,
    one_line_errors,
    print_json,
    progress,
    status_console,
)
from sparsesteer.cli.models import DEMO_SAE_FOLDER, SMOLLM2, load_model
from sparsesteer.demo import speed, strength_plot
from sparsesteer.demo.choose import Audition, Rule, choose_features
from sparsesteer.demo.compare import Comparison, compare, random_feature
from sparsesteer.demo.setting import Setting

SPEED_FEATURES = 64
SPEED_TOKENS = 16
SIDE_BY_SIDE = 110  # columns of the terminal from which three texts fit beside each other


@one_line_errors
def demo(
    model: ModelOption = SMOLLM2,
    sae: Annotated[Path, typer.Option("--sae", "-s", help="SAE folder with feature_statistics.safetensors.")] = (
        DEMO_SAE_FOLDER
    ),
    prompt: Annotated[str, typer.Option(help="What the model is asked.")] = "Write a short story.",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the picture.")] = Path("demo_output"),
    rounds: Annotated[int, typer.Option(min=3, help="Rounds of the speed comparison.")] = 15,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Steer SmolLM2-135M-Instruct through the SAE that comes with this package.

    Chooses three features by a printed rule and shows what each does to the text, beside a random feature of
    equal norm; compares the speed of decoding with plain torch and SAELens; draws strength against effect.

    Examples:

        sparsesteer demo

        sparsesteer demo --prompt "Describe a city." --output /tmp/demo
    """
    rule = Rule()
    with loading(f"{model} and its SAE"):
        network, tokenizer = load_model(model)
        setting = Setting.load(network, tokenizer, sae, prompt, rule.new_tokens)
    console = status_console() if as_json else Console()
    console.rule("Features")
    console.print(Text(f"{setting.sae}\n\nRule: {rule}\n"))
    chosen = choose_features(setting, rule, progress)
    if not chosen:
        raise ValueError(f"no feature passes the rule with the prompt {prompt!r}; try another --prompt")
    numbers = [audition.candidate.feature for audition in chosen]
    comparisons = []
    for place, audition in enumerate(chosen):
        control = random_feature(setting.density, numbers, seed=place)
        comparisons.append(compare(setting, audition, control))
        print_comparison(console, audition, comparisons[-1])
    console.rule("Speed")
    result = speed.measure(setting, SPEED_FEATURES, SPEED_TOKENS, rounds, progress)
    print_speed(console, result)
    console.rule("Strength")
    drawn = strength_plot.plot(setting, chosen, output, progress)
    console.print(Text(drawn))
    if as_json:
        print_json(
            {
                "rule": asdict(rule),
                "chosen": [asdict(audition) for audition in chosen],
                "comparisons": [asdict(comparison) for comparison in comparisons],
                "speed": asdict(result),
                "strength": drawn,
            }
        )


def print_comparison(console: Console, audition: Audition, comparison: Comparison) -> None:
    """One feature: what it stands for, and three answers beside or below each other."""
    candidate = audition.candidate
    console.print(
        Text.assemble(
            (f"Feature {candidate.feature}", "bold"),
            f" ({candidate.topic}) set to {audition.value:.3g} in the generated tokens. Prompt: {comparison.prompt}",
        )
    )
    width = console.width // 3 - 1 if console.width >= SIDE_BY_SIDE else console.width
    answers = (
        ("unsteered", Text(comparison.unsteered), "none"),
        (f"steered by {candidate.feature}", Text(comparison.steered), "green"),
        (f"random feature {comparison.control_feature}, equal norm", Text(comparison.control), "none"),
    )
    console.print(
        Columns([Panel(text, title=title, width=width, border_style=style) for title, text, style in answers])
    )


def print_speed(console: Console, result: speed.SpeedResult) -> None:
    """The table, or the reason why there is none."""
    for note in result.notes:
        console.print(Text(note, style="yellow"))
    if not result.rows:
        return
    table = Table(title=f"one token at a time, {result.n_features} features edited in every token")
    for column in ("", "tokens/s", "ratio to unsteered", "95 % interval", "logits differ by"):
        table.add_column(column, justify="right" if column else "left")
    for row in result.rows:
        table.add_row(
            row.name,
            f"{row.tokens_per_second:.1f}",
            f"{row.ratio:.3f}",
            f"{row.ratio_low:.3f} to {row.ratio_high:.3f}",
            "" if row.name == "unsteered" else f"{row.difference:.0e}",
        )
    console.print(table)
    console.print(
        "Medians of interleaved rounds, ratios paired within each round. The last column is relative to what "
        "steering changes, against gathered torch."
    )
