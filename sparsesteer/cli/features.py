"""``sparsesteer features``: what is active in a text, and what is known of a feature; the latter without torch."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsesteer.cli.border import (
    DebugOption,
    JsonOption,
    LayerOption,
    ModelOption,
    RawOption,
    SaeOption,
    one_line_errors,
    print_json,
)
from sparsesteer.cli.explained import Explained
from sparsesteer.cli.models import DEMO, SMOLLM2

_BARS = "▁▂▃▄▅▆▇█"
_BINS = 32


@one_line_errors
def features(
    text: Annotated[
        str | None, typer.Argument(help="The text to read; or a feature's number.", show_default=False)
    ] = None,
    search: Annotated[str | None, typer.Option(help="Words that a feature's explanation should have.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to browse all explained features.")] = None,
    explanations: Annotated[
        Path | None, typer.Option(help="File of explanations.", show_default="the one beside the SAE")
    ] = None,
    model: ModelOption = SMOLLM2,
    sae: SaeOption = DEMO,
    layer: LayerOption = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Number of features shown.")] = 8,
    raw: RawOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show which features are active where in a text, in percent of each feature's maximum.

    The maximum is the one over the SAE's corpus where its folder has it, else the one over this text.
    The first token (an attention sink) and special tokens are left out. Below the table: the words that each
    feature promotes most (its decoder row through the final norm and the unembedding).

    A number shows what is known of that feature: its words, label, density, and the contexts that activate it most.
    With --search, list the features whose explanation has all the words, strongest first. With --html, write a page
    of all features. For these three no model is loaded.

    Examples:

        sparsesteer features "The ship left the harbour at night."

        sparsesteer features --raw --top 12 --json "The ship left the harbour at night."

        sparsesteer features --search elephants

        sparsesteer features 2116
    """
    if sum(given is not None for given in (text, search, html)) != 1:
        raise typer.BadParameter("give a text to read, a feature's number, --search, or --html, one of them")
    if search is not None:
        print_matches(Explained.of(sae, model, explanations), search, top, as_json)
    elif html is not None:
        print(Explained.of(sae, model, explanations).write_page(html))
    elif text is not None and text.strip().isdecimal():
        print_feature(Explained.of(sae, model, explanations), int(text), as_json)
    else:
        from sparsesteer.cli.active_features import print_active

        print_active(text or "", model, sae, layer, top, raw, as_json)


def print_matches(known: Explained, words: str, top: int, as_json: bool) -> None:
    """The features whose explanation has all the words, at most ``top``."""
    matches = known.words.search(words)
    if as_json:
        print_json({"method": known.method, "found": len(matches), "features": [asdict(m) for m in matches[:top]]})
        return
    table = Table(title=f"{len(matches)} features whose explanation ({known.method}) has {words!r}")
    for heading in ("feature", "score", "maximum"):
        table.add_column(heading, justify="right")
    table.add_column("words")
    for match in matches[:top]:
        maximum = known.maximum_of(match.feature)
        explanation = Text("  ".join(scored.word for scored in match.words))
        table.add_row(
            str(match.feature), f"{match.score:.2f}", "" if maximum is None else f"{maximum:.3g}", explanation
        )
    Console().print(table)


def print_feature(known: Explained, feature: int, as_json: bool) -> None:
    """All that is known of one feature."""
    if feature >= len(known.words):
        raise ValueError(f"feature {feature} is out of range, this SAE has 0 to {len(known.words) - 1}")
    facts = known.facts(feature)
    if as_json:
        print_json(facts)
        return
    console = Console()
    console.print(Text(f"feature {feature}", style="bold"), Text(known.method, style="dim"))
    for name in ("label", "summary", "verdict"):
        if facts.get(name):
            console.print(Text(f"{name}: {facts[name]}"))
    console.print(Text("  ".join(f"{w['word']} {w['score']:.2f}" for w in facts["words"]) or "no words"))
    if facts["density"] is not None:
        console.print(Text(density_line(known.densities, facts["density"])))
    if facts["maximum"] is not None:
        console.print(Text(f"maximum {facts['maximum']:.3g}"))
    for context in facts["contexts"]:
        console.print(_context(context))


def density_line(densities: Any, density: float) -> str:
    """Where a feature's density stands among all, as a histogram of their logarithms."""
    logs = [math.log10(each) for each in densities if each > 0]
    if not logs or density <= 0:
        return f"active at {density:.3%} of the tokens"
    low, high = min(logs), max(logs)
    counts = [0] * _BINS
    for value in logs:
        counts[_bin(value, low, high)] += 1
    tallest = max(counts)
    bars = [_BARS[round((len(_BARS) - 1) * count / tallest)] if count else " " for count in counts]
    marked = "".join(bars), " " * _bin(math.log10(density), low, high) + "^"
    return f"active at {density:.3%} of the tokens; densities of all, {10**low:.1e} to {10**high:.1e}:\n" + "\n".join(
        marked
    )


def _bin(value: float, low: float, high: float) -> int:
    return min(_BINS - 1, int(_BINS * (value - low) / (high - low))) if high > low else 0


def _context(context: dict) -> Text:
    """Its tokens, the more active the stronger."""
    highest = max(context["activations"], default=0) or 1
    line = Text(f"{highest:>7.3g}  ")
    for token, activation in zip(context["tokens"], context["activations"], strict=True):
        share = activation / highest
        style = "bold white on red" if share >= 0.75 else "black on yellow" if share >= 0.3 else ""
        line.append(token.replace("\n", "\\n"), style=style)
    return line
