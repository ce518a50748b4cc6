"""examples/alignsae_biographies, whole: thirty people, a language model that knows them, swaps, a report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "alignsae_biographies" / "run.py"

# behind the first block, which is best in this small a model: the answer stands in the state soon after
THIRTY = "--people 30 --steps 220 --layers 4 --scan 0 --epochs 150 --two-hop-layers"

pytestmark = pytest.mark.slow


def run(folder, *options):
    given = [sys.executable, str(EXAMPLE), str(folder), "--threads", "1", *options]
    done = subprocess.run(given, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text())


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_thirty_people_from_an_empty_folder(tmp_path):
    found = run(
        tmp_path, *THIRTY.split()
    )["biographies"]  # fmt: skip
    assert found["language_model"]["train"] > 0.9
    (binding,) = found["binding"]
    assert binding["trained_wording"]["diagonal"] > 0.95
    test = found["test"]
    swaps = {name: test[name]["trained_wording"]["strict"]["mean"] for name in test}
    assert swaps["slot"] > 0.5 > swaps["control_random_direction"] and swaps["slot"] > swaps["control_random_slot"]
    names = {path.name for path in tmp_path.iterdir()}
    assert {"README.md", "report.json", "confusion.svg", "layers.svg", "alphas.svg"} <= names
    assert "## Swaps" in (tmp_path / "README.md").read_text()
    before = (tmp_path / "README.md").read_text()
    run(tmp_path, *THIRTY.split())  # reads what is there
    assert (tmp_path / "README.md").read_text() == before


@pytest.mark.xfail(strict=True, reason="slots of chains are not bound yet, see docs/methods/alignsae.md")
def test_chains_from_an_empty_folder(tmp_path):
    options = "--people 12 --steps 60 --width 64 --layers 2 --scan 1 --entities 6 --chains 400 --two-hop-steps 150"
    found = run(tmp_path, *options.split(), "--two-hop-layers", "1")["two_hop"]
    diagonals = [row["diagonal"] for row in found["epochs"]["1"]]
    assert diagonals[-1] > 0.9 > diagonals[0]
    assert set(found["test"]) >= {"slot", "latent_decode", "ordinary_top_1"}
