"""``sparsesteer serve`` up to the start of vLLM, and how vLLM is wrapped; without vLLM."""

import json
import sys
import types

import pytest
from typer.testing import CliRunner

from sparsesteer.cli import app
from sparsesteer.serving import seams
from sparsesteer.serving.server_command import server_command, server_environment
from sparsesteer.serving.settings import settings_of


def test_the_command_declares_what_settings_read(tmp_path):
    (tmp_path / "sae").mkdir()
    command = server_command(
        "m", [str(tmp_path / "sae"), "3=release:id"], tmp_path / "specs", features=8, slots=5, allow_registration=True,
        more=["--port", "1"],
    )  # fmt: skip
    settings = settings_of(json.loads(command[command.index("--additional-config") + 1]))
    assert [(site.sae, site.site, site.features) for site in settings.sites] == [
        (str(tmp_path / "sae"), None, 8),
        ("release:id", 3, 8),
    ]
    assert (settings.specs, settings.slots, settings.allow_registration) == (str(tmp_path / "specs"), 5, True)
    assert command[-2:] == ["--port", "1"]


@pytest.mark.parametrize(("named", "plugins"), [("a,b", ["a", "b", "sparsesteer"]), ("", ["sparsesteer"])])
def test_plugins_that_were_allowed_stay_so(named, plugins):
    found = server_environment({"VLLM_PLUGINS": named, "X": "1"})
    assert found["VLLM_PLUGINS"].split(",") == plugins and found["X"] == "1"
    assert found["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_serve_says_what_is_missing(monkeypatch):
    run = CliRunner().invoke
    assert "--sae, or a folder of --specs" in run(app, ["serve", "m"]).output
    monkeypatch.setattr("sparsesteer.cli.serve.util.find_spec", lambda name: None)
    assert "pip install 'sparsesteer[vllm]'" in run(app, ["serve", "m", "--sae", "demo"]).output


@pytest.fixture
def fake_vllm(monkeypatch):
    """Two modules, of which the second took a function of the first by name."""
    first, second = types.ModuleType("vllm.first"), types.ModuleType("vllm.second")
    exec("def f(a, b):\n    return a + b\nclass C:\n    def g(self, a):\n        return a", first.__dict__)
    second.f = first.f
    for module in (first, second):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return first, second


def test_a_wrapper_reaches_every_module_and_is_put_on_once(fake_vllm):
    first, second = fake_vllm
    for _ in range(2):
        seams.wrap("vllm.first:f", lambda original, *args: 10 * original(*args))
        seams.wrap("vllm.first:C.g", lambda original, self, a: original(self, a) + 1)
    assert first.f(1, 2) == second.f(1, 2) == 30
    assert first.C().g(1) == 2


def test_other_arguments_and_absent_places_are_mismatches(fake_vllm, monkeypatch):
    known = {"vllm.first:f": ("a", "b"), "vllm.first:C.g": ("self", "x"), "vllm.first:C.h": (), "vllm.third:f": ()}
    monkeypatch.setattr(seams, "SEAMS", known)
    found = seams.mismatches()
    assert len(found) == 3
    assert found[0] == "vllm.first:C.g takes self, a; known is self, x"
    assert "vllm.first:C.h is missing" in found[1] and "vllm.third:f is missing" in found[2]
