"""The README's picture is what the commands in it print now."""

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import pytest
from demo_model import needs_demo_model

SCRIPT = Path(__file__).parents[1] / "docs" / "hero.py"


def tool():
    spec = importlib.util.spec_from_file_location("hero", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hero = tool()


def texts(svg):
    """The pieces of text of a picture, in their order."""
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(each.itertext()).replace("\u00a0", " ") for each in found]


@pytest.fixture(scope="module")
def kept():
    return hero.PICTURE.read_text(encoding="utf-8")


@needs_demo_model
def test_the_picture_says_what_the_commands_print(kept):
    assert texts(hero.picture()) == texts(kept)


def test_the_picture_shows_the_commands_and_both_answers(kept):
    said = "\n".join(texts(kept))
    for command in hero.COMMANDS:
        assert all(line.strip() in said for line in command.splitlines())
    assert "unsteered" in said and "steered by" in said


def test_the_picture_asks_for_nothing_from_elsewhere(kept):
    root = ElementTree.fromstring(kept)
    assert "url(http" not in kept and "@font-face" not in kept and "@import" not in kept
    assert not [name for each in root.iter() for name in each.attrib if name.endswith("href")]


def test_a_command_that_fails_is_told():
    with pytest.raises(RuntimeError, match="no such folder"):
        hero.printed("sparsesteer features --search strike --sae ./absent")
