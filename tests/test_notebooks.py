"""The kept outputs of docs/notebooks are what comes out now: each notebook is executed, and what it says compared."""

import importlib.util
import re
from pathlib import Path

import pytest
from demo_model import needs_demo_model

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
for package in ("nbclient", "ipykernel", "matplotlib"):
    pytest.importorskip(package, reason=f"{package} is not installed")

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
MOST_BYTES = 300_000
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[+-]?\d+)?")


def tool():
    spec = importlib.util.spec_from_file_location("notebooks_make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = tool()
each_notebook = pytest.mark.parametrize("path", make.notebooks(), ids=lambda path: path.stem)
SHORT = "share"  # the others take two minutes each
each_execution = pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path.stem == SHORT else pytest.mark.slow) for path in make.notebooks()],
    ids=lambda path: path.stem,
)


def outputs(notebook):
    """All outputs, as (cell, kind, text); of a picture only that it is there."""
    found = []
    for place, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                found.append((place, output.name, output.text))
            for kind, data in sorted(output.get("data", {}).items()):
                found.append((place, kind, "a picture" if kind.startswith("image/") else data))
    return found


def check_same(kept, now):
    """Words and whole numbers are equal, others within a unit of their last place: CPUs round differently."""
    assert NUMBER.sub("#", now) == NUMBER.sub("#", kept)
    for said, is_now in zip(NUMBER.findall(kept), NUMBER.findall(now), strict=True):
        digits = re.split("e", said.partition(".")[2])
        unit = 10.0 ** (int(digits[1]) if len(digits) > 1 else 0) / 10 ** len(digits[0])
        assert float(is_now) == pytest.approx(float(said), abs=1.01 * unit), f"{said} is {is_now} now"


def test_there_are_three():
    assert {path.stem for path in make.notebooks()} == {"find_a_feature", "steer", "share"}


@each_notebook
def test_kept_outputs_are_small_and_say_nothing_of_the_machine(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(text.encode()) < MOST_BYTES
    said = " ".join(words for _, _, words in outputs(notebook))
    assert not re.search(r"/(home|root|tmp|usr|work)\b| at 0x|[Ww]arning:", said)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert "stderr" not in {kind for _, kind, _ in outputs(notebook)}


@needs_demo_model
@each_execution
def test_outputs_are_what_comes_out(path):
    kept, now = nbformat.read(path, as_version=4), make.executed(path)
    assert [each[:2] for each in outputs(now)] == [each[:2] for each in outputs(kept)]
    for (place, kind, said), (_, _, is_now) in zip(outputs(kept), outputs(now), strict=True):
        print(f"cell {place}, {kind}")  # shown if the next line fails
        check_same(said, is_now)


@pytest.mark.parametrize(
    ("kept", "now"),
    [("loss 3.646", "loss 3.649"), ("2 of 3 tokens", "1 of 3 tokens"), ("the sea", "the see"), ("1.5e-3", "1.7e-3")],
)
def test_what_differs_is_seen(kept, now):
    check_same(kept, kept)
    with pytest.raises(AssertionError):
        check_same(kept, now)
