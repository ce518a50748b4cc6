"""Looking features up: without torch, by number and by word, out of whole and damaged files, and as a page."""

import json
import re
import subprocess
import sys

import chromium
import pytest
import torch
from tiny_model import N_FEATURES, write_sae
from typer.testing import CliRunner

from sparsesteer import SAE, Explanations
from sparsesteer.cli import app
from sparsesteer.cli.features import density_line
from sparsesteer.word_index import FILE_NAME, ExplanationFile, Notes

HOSTILE = "</script><script>window.broken = 1</script>"
NOTES = {
    3: {
        "label": "the sea",
        "summary": "ships at sea",
        "verdict": "yes",
        "contexts": [{"tokens": ["The", " ship", HOSTILE], "activations": [0.0, 2.5, 0.5]}],
    }
}


def made():
    lists = [[("ship", 2.0), ("sea", 1.0)] if f == 3 else [("ship", 3.0)] if f == 4 else [] for f in range(N_FEATURES)]
    plain = Explanations.of(lists, method="by hand", method_version="1")
    density = torch.logspace(-5, -1, N_FEATURES)
    return plain.with_notes([NOTES.get(f, {}) for f in range(N_FEATURES)], density)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An SAE with explanations of every kind beside it."""
    folder = tmp_path_factory.mktemp("explained")
    write_sae(folder)
    made().save(folder / FILE_NAME)
    return folder


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(app, ["features", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output + repr(result.exception)
    return result


def test_notes_are_kept_with_the_words(folder, tmp_path):
    loaded = Explanations.load(folder / FILE_NAME)
    assert loaded.note(3) == NOTES[3] and loaded.note(4) == {} and torch.equal(loaded.density, made().density)
    more = loaded.with_notes([{"label": "x"} if f == 3 else {} for f in range(N_FEATURES)])
    assert more.note(3) == NOTES[3] | {"label": "x"} and torch.equal(more.density, loaded.density)
    sae = SAE.load_from_disk(folder)
    assert SAE.load_from_disk(sae.save(tmp_path / "again")).explanations.note(3) == NOTES[3]
    with pytest.raises(ValueError, match="notes should be of 48 features, got 1"):
        loaded.with_notes([{}])
    with pytest.raises(ValueError, match="rise from 0 to 3"):
        Notes(b"abc", [0, 2, 1, 3])


def test_the_file_alone_answers_as_the_explanations_do(folder):
    whole, file = Explanations.load(folder / FILE_NAME), ExplanationFile(folder / FILE_NAME)
    assert len(file) == len(whole) and file.about["method"] == "by hand"
    for text in ("ship", "SHIP sea", "whale"):
        assert file.search(text) == whole.search(text)
    for feature in range(N_FEATURES):
        assert file[feature] == whole[feature] and file.note(feature) == whole.note(feature)
    assert file.density.tolist() == whole.density.tolist()


def test_every_cut_of_the_file_is_refused(folder, tmp_path):
    data = (folder / FILE_NAME).read_bytes()
    for length in range(0, len(data), 37):
        (tmp_path / FILE_NAME).write_bytes(data[:length])
        with pytest.raises(ValueError, match=FILE_NAME):
            ExplanationFile(tmp_path / FILE_NAME)
    (tmp_path / FILE_NAME).write_bytes(data.replace(b"sparsesteer.explanations", b"sparsesteer.explanationz"))
    with pytest.raises(ValueError, match="not a file of explanations"):
        ExplanationFile(tmp_path / FILE_NAME)


def test_no_torch_is_imported(folder):
    program = (
        "import sys; from sparsesteer.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    for arguments in (["--search", "ship"], ["3"], ["--html", str(folder / "page.html")]):
        subprocess.run([sys.executable, "-c", program, "features", *arguments, "-s", str(folder)], check=True)


def test_a_feature_by_its_number(folder):
    facts = json.loads(run(3, "-s", folder, "--json").stdout)
    assert [w["word"] for w in facts["words"]] == ["ship", "sea"] and facts["contexts"] == NOTES[3]["contexts"]
    assert facts["maximum"] == SAE.load_from_disk(folder).feature_maximum[3]
    printed = run(3, "-s", folder).stdout
    for text in ("feature 3", "label: the sea", "ship 2.00", "of the tokens", "^", "The ship"):
        assert text in printed
    assert "no words" in run(7, "-s", folder).stdout
    assert "feature 48 is out of range" in run(48, "-s", folder, exit_code=1).stderr
    assert "no explanations" in run(3, "-s", folder, "--explanations", folder / "none", exit_code=1).stderr


def test_the_histogram_marks_the_feature():
    lines = density_line([1e-4, 1e-3, 1e-2, 0.0], 1e-2).splitlines()
    assert lines[0].startswith("active at 1.000%") and lines[2].index("^") == 31 and lines[1][0] == "█"
    assert density_line([0.0], 0.0) == "active at 0.000% of the tokens"


def page(folder, tmp_path):
    return run("--html", tmp_path / "new" / "page.html", "-s", folder).stdout.strip()


def test_the_page_holds_everything_and_nothing_from_outside(folder, tmp_path):
    text = open(page(folder, tmp_path)).read()
    assert text.count("</script>") == 2
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert len(data["features"]) == N_FEATURES and data["vocabulary"] == ["ship", "sea"]
    assert data["features"][3]["c"] == [[NOTES[3]["contexts"][0]["tokens"], [0.0, 2.5, 0.5]]]
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\(|fetch\(|XMLHttpRequest", text)


@pytest.mark.browser
@pytest.mark.skipif(chromium.FOUND is None, reason=chromium.MISSING)
def test_the_page_in_a_browser(folder, tmp_path):
    path = page(folder, tmp_path)
    browser = chromium.Chromium(tmp_path / "profile")
    try:
        browser.look(1200, 800)
        browser.open(chromium.Path(path))
        listed = "[...document.querySelectorAll('#list button')].map((b) => Number(b.dataset.feature))"
        assert len(browser.evaluate(listed)) == N_FEATURES

        def search(text):
            browser.evaluate(f"(search.value = {json.dumps(text)}, search.dispatchEvent(new Event('input')), true)")
            return browser.evaluate(listed)

        assert search("ship") == [4, 3] and search("SHIP sea") == [3] and search("sea") == [3]
        assert search("whale") == [] and "No feature" in browser.evaluate("detail.innerText")
        assert search("the sea") == [3] and search("47") == [47]
        search("sea")
        shown = browser.evaluate("detail.innerText")
        for text in ("Feature 3", "the sea", "ships at sea", "ship", "Active at", HOSTILE):
            assert text in shown
        colours = "[...document.querySelectorAll('.context span')].map((s) => getComputedStyle(s).backgroundColor)"
        plain, hot, warm = browser.evaluate(colours)
        assert plain == "rgba(0, 0, 0, 0)" != hot and hot != warm
        assert browser.evaluate("document.querySelectorAll('svg rect.here').length") == 1
        browser.evaluate("(search.value = '', search.dispatchEvent(new Event('input')), true)")
        browser.evaluate("(document.querySelector('#list button[data-feature=\"4\"]').click(), true)")
        assert browser.evaluate("detail.querySelector('h2').textContent") == "Feature 4"
        assert browser.evaluate("window.broken") is None
        assert browser.problems() == []
        assert {url.split(":")[0] for url in browser.requests()} <= {"file", "data"}
    finally:
        browser.close()
