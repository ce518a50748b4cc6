"""The page of a recording: one file, what stands in it, and what a browser makes of it."""

import html
import json
import re

import chromium
import pytest
import torch
from recordings import recording

from sparsesteer.recording.recording import Entries, Recording
from sparsesteer.recording.watched import WatchedFeature

HOSTILE = (
    "<script>window.broken = 1</script>",
    "</script><script>window.broken = 2</script>",
    "<img src=x onerror='window.broken = 3'>",
    "<!--",
    "]]>",
    "&lt;b&gt;",
    '"\\u003c',
    "\u2028",
    "日本語 🚢",
    "\n",
    "  ",
    "",
)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_data_is_the_recording(tmp_path):
    made = recording(into=recording(("Once", " more"), number=3, n_generated=0))
    page = made.to_html(tmp_path / "folder" / "page.html", title="Ships & <b>boats</b>").read_text()
    assert html.escape("Ships & <b>boats</b>") in page and "<b>boats" not in page
    data = data_of(page)
    assert [(f["site"], f["feature"]) for f in data["features"]] == [(f.site, f.feature) for f in made.features]
    for each in data["sequences"]:
        part = made.sequence(each["number"])
        assert each["texts"] == list(part.texts) and each["tokens"] == part.tokens.tolist()
        assert each["generated"] == part.generated.int().tolist()
        assert each["before"] == part.before.T.tolist() and each["after"] == part.after.T.tolist()


def test_numbers_are_short_and_json_knows_them(tmp_path):
    made = Recording([WatchedFeature("here", 1)], texts=["a", "b", "c"])
    values = torch.tensor([[1 / 3], [torch.nan], [torch.inf]])
    numbers = torch.arange(3)
    made.add(Entries(numbers, numbers * 0, numbers, numbers < 0, values, values), 3)
    [sequence] = data_of(made.to_html(tmp_path / "page.html").read_text())["sequences"]
    assert sequence["before"] == [[0.33333, None, None]]


def test_an_unsteered_recording_holds_its_numbers_once(tmp_path):
    [sequence] = data_of(recording(steered=False).to_html(tmp_path / "page.html").read_text())["sequences"]
    assert sequence["after"] is None


def test_hostile_texts_do_not_end_the_data(tmp_path):
    page = recording(HOSTILE).to_html(tmp_path / "page.html").read_text()
    assert page.count("</script>") == 2 and "<img" not in page
    assert data_of(page)["sequences"][0]["texts"] == list(HOSTILE)


def test_nothing_from_outside_is_named(tmp_path):
    page = recording().to_html(tmp_path / "page.html").read_text()
    assert not re.search(r"https?:|//[a-z]+\.|@import|\bimport\b|url\(|fetch\(|XMLHttpRequest", page)


def test_an_empty_recording_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing was recorded"):
        Recording([WatchedFeature("here", 1)]).to_html(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


browser_test = pytest.mark.skipif(chromium.FOUND is None, reason=chromium.MISSING)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of a recording, without a word of complaint on the console and without a request but its own."""

    def open_page(made):
        path = made.to_html(tmp_path / "page.html")
        browser.look(1200, 900)
        browser.open(path)
        return browser

    yield open_page
    assert browser.problems() == []
    assert {url.split(":")[0] for url in browser.requests()} <= {"file", "data"}


TOKENS = "[...document.querySelectorAll('.token')]"
COLOURS = f"{TOKENS}.map((token) => getComputedStyle(token).backgroundColor)"
CLEAR = "rgba(0, 0, 0, 0)"


@pytest.mark.browser
@browser_test
def test_every_token_is_there_in_its_colour(show):
    page = show(recording())
    assert page.evaluate(f"{TOKENS}.map((token) => token.textContent)") == ["The", " ship", " left", "."]
    colours = page.evaluate(COLOURS)
    assert colours[0] == CLEAR and len(set(colours)) == 4  # 0, then rising
    assert page.evaluate(f"{TOKENS}.map((token) => token.classList.contains('generated'))") == [False] * 3 + [True]
    assert "4 tokens, 2 features at blocks.1.hook_resid_post" in page.evaluate("document.body.innerText")


@pytest.mark.browser
@browser_test
def test_another_feature_and_another_view_change_the_colours(show):
    page = show(recording(("a", "b", "c"), n_features=3))
    seen = [page.evaluate(COLOURS)]
    page.evaluate("document.querySelector('input[name=feature][value=\"2\"]').click()")
    seen.append(page.evaluate(COLOURS))
    assert seen[0][0] == CLEAR != seen[1][0]
    high = page.evaluate("document.getElementById('high').textContent")
    page.evaluate("document.querySelector('input[name=view][value=before]').click()")
    assert float(page.evaluate("document.getElementById('high').textContent")) == float(high) / 2
    page.evaluate("document.querySelector('input[name=view][value=change]').click()")
    assert page.evaluate("document.getElementById('low').textContent").startswith("-")


@pytest.mark.browser
@browser_test
def test_hostile_texts_stay_texts(show):
    page = show(recording(HOSTILE))
    assert page.evaluate("window.broken") is None
    shown = page.evaluate(f"{TOKENS}.map((token) => token.textContent)")
    assert shown[:9] == list(HOSTILE[:9])
    assert shown[9:] == ["↵", "␣␣", "◌"]
    assert page.evaluate("document.querySelectorAll('#tokens script, #tokens img, #tokens b').length") == 0
    for i in range(len(HOSTILE)):
        page.evaluate(f"{TOKENS}[{i}].click()")
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.querySelectorAll('aside script, aside img').length") == 0


@pytest.mark.browser
@browser_test
def test_the_keyboard_reaches_every_token(show):
    page = show(recording())
    assert page.evaluate("document.querySelectorAll('.token[tabindex=\"0\"]').length") == 1
    for _ in range(9):  # past the controls
        page.press("Tab")
        if page.evaluate("document.activeElement.className.includes('token')"):
            break
    reached = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home", "n"):
        page.press(key)
        reached.append(page.evaluate("Number(document.activeElement.dataset.i)"))
    assert reached == [1, 2, 1, 3, 0, 2]  # n: at least half of the largest, 3
    detail = page.evaluate("document.getElementById('detail').innerText")
    assert '" left"' in detail and "token 2, id 12, prompt" in detail
    assert re.search(r"12\s+1\s+2\b", detail) and re.search(r"99\s+1.25\s+2.5\b", detail)


@pytest.mark.browser
@browser_test
def test_hovering_shows_before_and_after(show):
    page = show(recording())
    box = page.evaluate(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({TOKENS}[2].getBoundingClientRect())"
    )
    page.hover(*box)
    tip = "document.getElementById('tip')"
    assert page.evaluate(f"{tip}.textContent") == "1 → 2"
    assert page.evaluate(f"getComputedStyle({tip}).visibility") == "visible"


@pytest.mark.browser
@browser_test
def test_several_sequences_and_many_features(show):
    page = show(recording(("x", "y"), 30, number=4, into=recording(n_features=30)))
    assert page.evaluate("document.querySelectorAll('#sequence option').length") == 2
    choose = "((box, value) => {{ box.value = value; box.dispatchEvent(new Event('change')); }})({}, {})"
    page.evaluate(choose.format("document.getElementById('sequence')", 1))
    assert page.evaluate(f"{TOKENS}.map((token) => token.textContent)") == ["x", "y"]
    before = page.evaluate(COLOURS)
    page.evaluate(choose.format("document.querySelector('#features select')", 29))
    assert page.evaluate(COLOURS) != before


@pytest.mark.browser
@browser_test
def test_light_and_dark(show):
    page = show(recording())
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.look(1200, 900, dark=True)
    dark = page.evaluate(paper)
    assert dark != light
    page.evaluate("document.getElementById('theme').click()")
    assert page.evaluate(paper) == light


@pytest.mark.browser
@browser_test
def test_thousands_of_tokens_stay_usable(show):
    page = show(recording([f" word{i}" for i in range(12_000)], 3))
    assert page.evaluate(f"{TOKENS}.length") == 12_000
    page.evaluate(f"{TOKENS}[11_000].click()")
    page.evaluate("document.querySelector('input[name=feature][value=\"1\"]').click()")
    assert len(set(page.evaluate(COLOURS))) > 100
    assert "token 11000" in page.evaluate("document.getElementById('detail').innerText")


@pytest.mark.browser
@browser_test
def test_a_recording_without_texts_shows_ids(show):
    made = recording()
    bare = Recording(made.features)
    bare.add(made.entries, len(made))
    assert show(bare).evaluate(f"{TOKENS}.map((token) => token.textContent)") == ["#10 ", "#11 ", "#12 ", "#13 "]
