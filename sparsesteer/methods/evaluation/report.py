"""A study as one folder that can be read: README.md, report.json and pictures."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsesteer.documents import read_document
from sparsesteer.files import write_whole
from sparsesteer.methods.evaluation import pictures
from sparsesteer.methods.evaluation.contenders import Fitted
from sparsesteer.methods.evaluation.evidence import layer_scan
from sparsesteer.methods.evaluation.results import OURS, UNSTEERED, by_method, choices, shares, table
from sparsesteer.methods.evaluation.scores import MEASURES
from sparsesteer.methods.evaluation.study import Study
from sparsesteer.methods.spare.statistics import SIDES


def write_report(study: Study, fitted: Fitted, lines: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Write the report of the answers on test; returns what is in report.json."""
    log, answers = study.log, by_method(lines)
    best = {side: study.chosen(OURS, side, log) for side in SIDES}
    some = best["memory"]
    held_out, _ = study.collected("dev")
    about = read_document(study.folder / "study.json")
    found: dict[str, Any] = {
        **about,
        "conflicts": {name: len(split) for name, split in study.splits.items()},
        "fit": fitted.collection.counts(),
        "unsteered": shares(study.tested, answers[UNSTEERED, SIDES[0]]),
        "table": table(answers, study.tested, study.protocol.in_context),
        "choices": choices(log),
        "layers": layer_scan(fitted, held_out, some["k"], some["alpha"]),
    }
    trials = [trial for trial in log.trials if trial.method == OURS]
    pictures.methods(found["table"], folder / "methods.png")
    pictures.along(trials, best, "alpha", folder / "alpha.png")
    pictures.along(trials, best, "k", folder / "k.png")
    pictures.spectrum(fitted.spare, folder / "spectrum.png")
    pictures.layers(found["layers"], trials, folder / "layers.png")
    found = _without_nan(found)
    write_whole(folder / "report.json", (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(folder / "README.md", markdown(found).encode())
    return found


def markdown(found: Mapping[str, Any]) -> str:
    """The report as a page."""
    protocol, unsteered = found["protocol"], found["unsteered"]
    parts = [
        f"# SPARE on {found['model']}",
        f"{found['data']}: {found['conflicts']['fit']} conflicts to fit, {found['conflicts']['dev']} to choose "
        f"(dev), {found['conflicts']['test']} to test, divided by entity. Each prompt begins with "
        f"{len(protocol['kinds'])} demonstrations ({', '.join(protocol['kinds'])}: context and answer substituted (s) "
        f"or original (o)), drawn anew for {len(protocol['test_seeds'])} seeds. Of the answers to the fitted prompts "
        f"{found['fit']['context']} came from the context, {found['fit']['memory']} from memory, "
        f"{found['fit']['neither']} from neither. Without steering the model answers {_percent(unsteered['context'])} "
        f"of test from the context, {_percent(unsteered['memory'])} from memory.",
        f"Every setting was chosen on dev, at most {protocol['budget']} trials for each method and direction, all in "
        "`trials.jsonl` of the study. The test split was answered once, under the settings chosen. EM in percent: mean "
        "± standard deviation over the seeds, and the 95 % bootstrap interval, questions drawn anew.",
        "![EM of every method](methods.png)",
    ]
    for toward in SIDES:
        parts += [f"## Toward {toward}", _table([row for row in found["table"] if row["toward"] == toward], toward)]
    parts += [
        "## What was chosen",
        _rows(("method", "toward", "trials", "setting", "EM on dev"), map(_choice, found["choices"])),
        "![EM against alpha](alpha.png) ![EM against k](k.png)",
        "## Layers",
        "AUC of a linear discriminant fitted on the split fit, on answers of dev: of the states, and of the "
        "activations of the k selected features. Unexplained: the SAE's share of the variance of the last prompt "
        "tokens' states. Edit: its length as a share of the state's, and its cosine with the difference of means, at "
        "the k and alpha chosen toward memory.",
        _rows(
            ("block", "AUC", "AUC of features", "unexplained", "largest MI", "edit's length", "edit's cosine"),
            map(_layer, found["layers"]),
        ),
        "![Layers](layers.png) ![Mutual information](spectrum.png)",
        "## Command",
        "\n".join(["```bash", *found["commands"], "```"]),
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Any]], toward: str) -> str:
    names = MEASURES[toward]
    head = ("method", *names, "minus none", "minus SPARE")
    return _rows(
        head,
        (
            (
                row["method"],
                *(_measure(row["measures"][name]) for name in names),
                _interval(row["minus_none"]),
                _interval(row["minus_spare"]),
            )
            for row in rows
        ),
    )


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _choice(row: Mapping[str, Any]) -> tuple[str, ...]:
    setting = ", ".join(f"{name} {_plain(value)}" for name, value in row["setting"].items()) or "none"
    return row["method"], row["toward"], str(row["trials"]), setting, _percent(row["em"])


def _layer(row: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("auc", "auc_features", "unexplained", "max_mi", "edit_norm", "edit_cosine")
    return str(row["site"]), *("" if row.get(name) is None else f"{row[name]:.2f}" for name in names)


def _measure(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return ""
    spread = "" if value["sd"] is None else f" ± {100 * value['sd']:.1f}"
    return f"{100 * value['mean']:.1f}{spread} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{100 * value['mean']:+.1f} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"


def _plain(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{value[0]} to {value[-1]}"
    return " ".join(map(str, value)) if isinstance(value, list) else f"{value:g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
