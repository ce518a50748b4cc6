"""A study as a folder that can be read: README.md, report.json, two pictures; no prompt or answer is in it."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsesteer.documents import read_document
from sparsesteer.files import write_whole
from sparsesteer.methods.evaluation.json_lines import JsonLines
from sparsesteer.methods.safety.outcomes import OUTCOMES, outcome
from sparsesteer.methods.safety.results import agreement, attack_success, helpfulness, table
from sparsesteer.methods.safety.study import DESCRIPTION
from sparsesteer.methods.safety.trials import ANSWERS, PERPLEXITIES, digest

COLORS = {"none": "0.2", "system prompt": "tab:green", "direction": "tab:purple", "amplify": "tab:orange",
          "calibrate": "tab:red", "gap_fill": "tab:blue"}  # fmt: skip
MARKERS = {"explained": "o", "contrast": "^", "random": "x"}


def write_report(study: Path, folder: Path, hand_labels: Path | None = None, command: str = "") -> dict[str, Any]:
    """Write the report of a study's answers so far; returns what is in report.json.

    Args:
        hand_labels: JSON, {"labels": {id of an answer: outcome}}, to say how far the rules can be trusted.
        command: that made it.
    """
    about = read_document(study / DESCRIPTION)
    rows = JsonLines.opened(study / ANSWERS).rows
    names = [_name(method, strength) for method, strength in about["protocol"]["controls"]]
    found: dict[str, Any] = {
        **about,
        "command": command,
        **table(rows, JsonLines.opened(study / PERPLEXITIES).rows, names),
    }
    if hand_labels is not None:
        outcomes = {answer_id(row): outcome(row["answer"]) for row in rows}
        by_hand = read_document(hand_labels)
        found["rules"] = agreement(by_hand["labels"], outcomes) | {"about": by_hand.get("about", "")}
    trade_off(found["rows"], folder / "trade_off.svg")
    bars(found["rows"], folder / "outcomes.svg")
    write_whole(folder / "report.json", (json.dumps(found, indent=1) + "\n").encode())
    write_whole(folder / "README.md", markdown(found).encode())
    return found


def answer_id(row: Mapping[str, Any]) -> str:
    """Tells answers apart without their text."""
    return digest(f"{row['control']}|{row['kind']}|{row['prompt']}")


def markdown(found: Mapping[str, Any]) -> str:
    """The report as a page."""
    protocol, n = found["protocol"], found["n"]
    parts = [
        f"# Defences of {found['model']}: attacks that succeed against requests that are served",
        f"{n['attack']} attacks ({found['attacks']}) and {n['harmless']} harmless requests ({found['harmless']}), each "
        f"answered greedily in at most {protocol['max_new_tokens']} tokens. SAE: {found['sae']}. Steered are all "
        "tokens but the first and special ones. Features: "
        + ", ".join(f"{len(some)} {which}" for which, some in found["features"].items())
        + f". The difference of means has length {found['direction_norm']:.3g}. Shares in percent with 95 % bootstrap "
        "intervals, prompts drawn anew. Outcomes by the rules of `sparsesteer.methods.safety.outcomes`: an attack "
        "succeeds if the answer is coherent and no refusal, whether or not what it says is of use to anybody.",
        "![Attack success against helpfulness](trade_off.svg)",
        _rows(
            ("defence", "attacks refused", "attacks that succeed", "minus none", "attacks, incoherent",
             "harmless refused", "harmless served", "minus none", "harmless, incoherent", "perplexity"),
            map(_line, found["rows"]),
        ),
        "![Outcomes](outcomes.svg)",
    ]  # fmt: skip
    parts += [
        "## What the features know of harm",
        "Mean activation at the last token of harmful and of harmless prompts that were not asked, and the cosine of "
        "the features' mean decoder row with the difference of means.",
        _rows(
            ("features", "harmful", "harmless", "cosine"),
            ((which, *(f"{value:.2f}" for value in known.values())) for which, known in found["evidence"].items()),
        ),
    ]
    if found["left_out"]:
        parts.append(f"Not asked: {', '.join(found['left_out'])}.")
    if "rules" in found:
        parts += ["## The rules against labels by hand", _rules(found["rules"])]
    if found["command"]:
        parts += ["## Command", f"```bash\n{found['command']}\n```"]
    return "\n\n".join(parts) + "\n"


def _rules(rules: Mapping[str, Any]) -> str:
    head = ("by hand \\ by the rules", *OUTCOMES, "recall")
    lines = [(hand, *(str(rules["counts"][hand][rule]) for rule in OUTCOMES), _share(rules["recall"][hand]))
             for hand in OUTCOMES]  # fmt: skip
    lines.append(("precision", *(_share(rules["precision"][rule]) for rule in OUTCOMES), ""))
    return (
        f"{rules['n']} answers were labelled by hand. The rules agree on {rules['agreed']:.0%} of them (kappa "
        f"{rules['kappa']:.2f}). {rules['about']}".rstrip()
        + "\n\n"
        + _rows(head, lines)
    )


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    attack, served = attack_success(row), helpfulness(row)
    perplexity = row["perplexity"]
    return (
        row["control"],
        _measure(row["attack refusal"]),
        _measure(attack),
        _signed(attack["minus_none"]),  # type: ignore[arg-type]
        _measure(row["attack incoherent"]),
        _measure(row["harmless refusal"]),
        _measure(served),
        _signed(served["minus_none"]),  # type: ignore[arg-type]
        _measure(row["harmless incoherent"]),
        "" if perplexity is None else f"{perplexity:.3g}",
    )


def _rows(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measure(value: Mapping[str, float]) -> str:
    return f"{100 * value['mean']:.0f} [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


def _signed(value: Mapping[str, float]) -> str:
    return f"{100 * value['mean']:+.0f} [{100 * value['low']:+.0f}, {100 * value['high']:+.0f}]"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _name(method: str, strength: float) -> str:
    return f"{method} {strength:g}" if strength else method


def trade_off(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Attack success against helpfulness, one line for each method over its strengths, from no defence on."""
    figure = _figure(8.5, 5)
    axes = figure.subplots()
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault(_method(row["control"]), []).append(row)
    none = lines.get("none", [])
    for method, some in lines.items():
        rule, _, which = method.partition(", ")
        color, marker = COLORS.get(rule, "0.5"), MARKERS.get(which, "s")
        ordered = sorted(some, key=lambda row: _strength(row["control"]))
        points = [(helpfulness(row)["mean"], attack_success(row)["mean"]) for row in [*none, *ordered]]
        if method != "none":
            axes.plot(*zip(*points, strict=True), color=color, linewidth=0.8, alpha=0.5)
        for number, row in enumerate(ordered):
            x, y = helpfulness(row), attack_success(row)
            axes.errorbar(
                x["mean"], y["mean"], color=color, marker=marker, markersize=6, capsize=2, linewidth=0.8,
                xerr=[[x["mean"] - x["low"]], [x["high"] - x["mean"]]],
                yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
                label=method if number == 0 else None,
            )  # fmt: skip
            strength = _strength(row["control"])
            if strength:
                axes.annotate(f"{strength:g}", (x["mean"], y["mean"]), xytext=(5, 5), textcoords="offset points",
                              fontsize="x-small", color=color)  # fmt: skip
    axes.set_xlabel("harmless requests served (coherent, no refusal)")
    axes.set_ylabel("attacks that succeed (coherent, no refusal)")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(color="0.92")
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    _write(figure, path)


def bars(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The three outcomes of every control, for attacks and for harmless requests."""
    figure = _figure(9, 0.8 + 0.32 * len(rows))
    shades = {"refusal": "tab:blue", "coherent": "tab:orange", "incoherent": "0.75"}
    names = [row["control"] for row in rows][::-1]
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("attack", "harmless"), strict=True):
        left = [0.0] * len(rows)
        for name in OUTCOMES:
            widths = [row[f"{kind} {name}"]["mean"] for row in rows][::-1]
            axes.barh(names, widths, left=left, color=shades[name], label=name)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_xlim(0, 1)
        axes.set_title("attacks" if kind == "attack" else "harmless requests", fontsize="medium")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    _write(figure, path)


def _method(control: str) -> str:
    return control.rpartition(" ")[0] if _strength(control) else control


def _strength(control: str) -> float:
    last = control.rpartition(" ")[2]
    return float(last) if last.replace(".", "", 1).isdigit() else 0.0


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _write(figure: Any, path: Path) -> None:
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sparsesteer"}):  # the same bytes each time
        figure.savefig(content, format="svg", metadata={"Date": None})
    lines = [line.rstrip() for line in content.getvalue().splitlines()]
    write_whole(path, ("\n".join(lines) + "\n").encode())
