"""What a run found: report.json, README.md and figures."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pictures

from sparsesteer.files import write_whole

TARGETS = (  # what, where it stands, the least
    ("trained wordings that the language model answers", "language_model", 0.95),
    ("diagonal on trained wordings of test people", "diagonal", 0.99),
    ("slot accuracy on unseen wordings of test people", "unseen", 0.90),
    ("strict swaps on trained wordings of test people", "swaps", 0.70),
)
LISTS = ("outcomes", "damaged")  # an entry for every swap or question
COMMAND = "```bash\npython examples/alignsae_biographies/run.py work --report report\n```"
NAMES = {
    "slot": "slot edit, the error kept (ours)",
    "move": "move: z_s (α d_t − d_s) (ours)",
    "latent_decode": "latent decode (paper)",
    "decoder_column": "decoder column",
    "decoder_column_both": "both decoder columns",
    "orthogonal": "orthogonal",
    "mean_diff": "difference of decoder columns",
    "control_random_slot": "control: another slot",
    "control_random_direction": "control: directions of chance",
}


def write_report(found: Mapping[str, Any], folder: Path) -> None:
    """Write everything into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = _without_outcomes(found)
    write_whole(folder / "report.json", (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode())
    people = found["biographies"]
    best = _of_layer(people, people["layer"])
    unseen = [name for name in people["answers"] if name != "validation"][-1]
    pictures.confusion(best[unseen]["confusion"], people["concepts"], folder / "confusion.svg")
    pictures.layers(people, folder / "layers.svg")
    pictures.alphas(people["validation"], folder / "alphas.svg")
    if "two_hop" in found:
        pictures.epochs(found["two_hop"]["epochs"], folder / "epochs.svg")
    write_whole(folder / "README.md", markdown(found).encode())


def markdown(found: Mapping[str, Any]) -> str:
    """The page."""
    people, layer = found["biographies"], found["biographies"]["layer"]
    known = people["language_model"]
    parts = [
        "# AlignSAE on biographies",
        f"{people['people']} people with six facts each, made of a seed; three in five train the SAE, one in five is "
        "for choosing, one in five for testing. The language model answers "
        f"{_percent(known['train'])} of the questions in the wordings that it was trained on, "
        f"{_percent(known['validation'])} of those in the validation wordings and {_percent(known['unseen'])} of those "
        "in unseen ones, of all people. Layer and α were chosen on the validation people in validation wordings.",
        _table(
            ("target", "least", f"block {layer}", ""),
            (
                (name, f"{least:.2f}", f"{value:.3f}", "reached" if value >= least else "missed")
                for name, value, least in targets(people)
            ),
        ),  # fmt: skip
        "## Layers",
        "![By layer](layers.svg) ![By alpha](alphas.svg)",
        _layers(people),
        "Unexplained is the share of the variance of test states that is not given back. EffFeat and Top1Conc are "
        "means over the concepts, of all features of either SAE, slots and free ones alike.",
        *_carried(people),
        "## Binding",
        "Unseen wordings of test people.",
        "![Confusion](confusion.svg)",
        "## Swaps",
        *_swaps(people),
        *_compared(people),
    ]
    if people["released"]:
        rows = (
            (_plain(name), f"{each['alpha']:g}", _interval(each["strict"]), _interval(each["kept"]))
            for name, each in people["released"].items()
        )
        parts += [
            "The released scripts' own injections, latent decode on trained wordings: into the embedding, and behind "
            "the block after the one that was read.",
            _table(("injection", "α", "strict", "answer unchanged"), rows),
        ]
    if "two_hop" in found:
        parts += _chains(found["two_hop"])
    parts += ["## Command", COMMAND, _time(found)]
    return "\n\n".join(parts) + "\n"


def targets(people: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(what, value, least)."""
    best = _of_layer(people, people["layer"])
    trained, unseen = [name for name in people["answers"] if name != "validation"]
    values = {
        "language_model": people["language_model"]["train"],
        "diagonal": best[trained]["diagonal"],
        "unseen": best[unseen]["accuracy"],
        "swaps": people["test"]["slot"][trained]["strict"]["mean"],
    }
    return [(name, values[key], least) for name, key, least in TARGETS]


def _layers(found: Mapping[str, Any]) -> str:
    sets = [name for name in found["answers"] if name != "validation"]
    rows = []
    for row in found["binding"]:
        scan = found["validation"][str(row["layer"])]
        swaps = [max((each["strict"], -float(a)) for a, each in scan[form].items()) for form in scan]
        rows.append(
            (
                str(row["layer"]),
                *(f"{row[name]['diagonal']:.3f}" for name in sets),
                *(f"{success:.3f} (α {-alpha:g})" for success, alpha in swaps),
                *(f"{row[name]['unexplained']:.3f}" for name in ("alignsae", "ordinary")),
                *(f"{row[n]['effective_features']:.1f}" for n in ("alignsae", "ordinary")),
                *(f"{row[n]['top_share']:.3f}" for n in ("alignsae", "ordinary")),
                f"{row['ordinary']['accuracy_top_1'][sets[-1]]:.3f}",
            )
        )
    both = ("AlignSAE", "ordinary")
    head = ("block", *(f"diagonal, {_plain(name)}" for name in sets), "swaps, slot", "swaps, latent decode")
    head += (*(f"unexplained, {n}" for n in both), *(f"EffFeat, {n}" for n in both), *(f"Top1Conc, {n}" for n in both))
    return _table((*head, f"ordinary's best feature, {_plain(sets[-1])}"), rows)


def _carried(found: Mapping[str, Any]) -> list[str]:
    """Why the layers differ."""
    rows = (
        (str(row["layer"]), _percent(each["follow"]), _percent(each["stay"]))
        for row, each in zip(found["binding"], found["carried"], strict=True)
    )
    return [
        "How far the answer stands in the state of the last token already: that state is replaced by the one of the "
        f"same wording about somebody else, {found['carried'][0]['n']} questions. A swap needs a state that says which "
        "concept is asked for and does not have the answer yet.",
        _table(("block", "the other's answer", "its own answer"), rows),
    ]


def _swaps(found: Mapping[str, Any]) -> Iterable[str]:
    test = found["test"]
    for name in [name for name in found["answers"] if name != "validation"]:
        yield (
            f"{_plain(name).capitalize()} of test: {test['slot'][name]['strict']['n']} swaps, "
            f"{_percent(found['answers'][name])} of the questions answered rightly unsteered. In percent, with 95 % "
            "intervals, entities drawn anew. Strict: letter for letter. Lenient: the released rule. Damage: questions "
            "about a third concept, answered rightly unsteered, that turn wrong under the same swap."
        )
        head = ("edit", "α", "strict", "strict, of those right unsteered", "lenient", "category", "unchanged", "damage")
        rows = (
            (
                NAMES.get(edit, _plain(edit)),
                f"{each['alpha']:g}",
                *(_interval(each[name][m]) for m in ("strict", "strict_of_right", "lenient", "category", "kept")),
                _interval(each[name]["damage"]),
            )
            for edit, each in test.items()
        )
        yield _table(head, rows)
        by_target = ((NAMES[edit], *(f"{100 * v:.1f}" for v in test[edit][name]["by_target"].values()))
                     for edit in ("slot", "latent_decode"))  # fmt: skip
        if len(found["concepts"]) <= 8:
            yield "Strict, by target:"
            yield _table(("edit", *test["slot"][name]["by_target"]), by_target)


def _compared(found: Mapping[str, Any]) -> Iterable[str]:
    rows = (
        (
            f"{_plain(row['ours'])} − {_plain(row['theirs'])}",
            _plain(row["set"]),
            *(_signed(row[what]) for what in ("strict", "damage")),
        )
        for row in found["compared"]
    )
    yield "Differences on the same swaps and questions, in points, with 95 % intervals:"
    yield _table(("forms", "wording", "strict success", "damage"), rows)


def _chains(found: Mapping[str, Any]) -> list[str]:
    return [
        "## Chains of two relations",
        f"{found['entities']} entities, 20 relations, {found['chains']} chains; swapped behind the first answer, where "
        "the second relation is asked for, at block "
        f"{found['layer']}. The diagonal on validation chains after every epoch:",
        "![By epoch](epochs.svg)",
        _layers(found),
        *_swaps(found),
        *_compared(found),
    ]


def _time(found: Mapping[str, Any]) -> str:
    used = found["time"]
    return (
        f"It took {used['cpu_minutes']:.0f} minutes of a processor; {used['minutes']:.0f} passed. "
        f"Threads: {used['threads']}."
    )


def _of_layer(found: Mapping[str, Any], layer: int) -> Mapping[str, Any]:
    return next(row for row in found["binding"] if row["layer"] == layer)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(value: Mapping[str, Any]) -> str:
    if value["mean"] is None or math.isnan(value["mean"]):
        return ""
    return f"{100 * value['mean']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _signed(value: Mapping[str, float]) -> str:
    return f"{100 * value['mean']:+.1f} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _without_outcomes(value: Any) -> Any:
    """Plain JSON: no NaN, and not the list of every swap."""
    if isinstance(value, Mapping):
        return {str(name): _without_outcomes(each) for name, each in value.items() if name not in LISTS}
    if isinstance(value, list | tuple):
        return [_without_outcomes(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
