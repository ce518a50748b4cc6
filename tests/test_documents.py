"""YAML and JSON from strangers: plain data of YAML 1.2, or an error that says where."""

import math

import pytest

from sparsesteer import documents
from sparsesteer.documents import read_document, write_document


def read(text, tmp_path, name="d.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_document(path)


SCALARS = {
    "true": True,
    "false": False,
    "null": None,
    "~": None,
    "": None,
    "12": 12,
    "-3": -3,
    "010": 10,
    "1.5": 1.5,
    "1e3": 1000.0,
    ".5": 0.5,
    "-1.": -1.0,
    ".inf": math.inf,
    # text, though YAML 1.1 reads something else
    "yes": "yes",
    "no": "no",
    "on": "on",
    "True": "True",
    "12:30": "12:30",
    "1_000": "1_000",
    "0x10": "0x10",
    "2001-01-01": "2001-01-01",
    "2x max": "2x max",
    "'12'": "12",
    "=": "=",
    "<<": "<<",
}


@pytest.mark.parametrize("text", SCALARS)
def test_scalars_are_those_of_yaml_1_2(text, tmp_path):
    value = read(f"v: {text}", tmp_path)["v"]
    assert value == SCALARS[text] and type(value) is type(SCALARS[text])


def test_names_are_text_or_whole_numbers(tmp_path):
    assert read("{12: a, no: b, '12': c}", tmp_path) == {12: "a", "no": "b", "12": "c"}


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_written_and_read_again(suffix, tmp_path):
    document = {
        "texts": [*map(str, SCALARS), "a: b", "# c", "- d", "e\nf", "*g", "&h", "!i", "\x07", "é", "1e3", "null"],
        "numbers": [0, -1, 1.5, 1e-7, 1e300, -0.0, True, None],
        "same": [[1], [1]],
    }
    path = write_document(tmp_path / "new" / f"d.{suffix}", document)
    assert read_document(path) == document
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_numbers_as_names_come_back_from_yaml(tmp_path):
    assert read_document(write_document(tmp_path / "d.yaml", {12: "a", "music": 1})) == {12: "a", "music": 1}


def test_shared_values_are_written_out(tmp_path):
    shared = [1, 2]
    assert "*" not in write_document(tmp_path / "d.yaml", {"a": shared, "b": shared}).read_text()


BOMB = "a: &a [x, x]\n" + "".join(f"{n}: &{n} [*{p}, *{p}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True))
HOSTILE = {
    "aliases": ("a: &x [1]\nb: *x", r"aliases \(\*name\) are not taken in .*line 2"),
    "a bomb of aliases": (BOMB, r"aliases \(\*name\) are not taken"),
    "a loop": ("a: &x [*x]", r"aliases \(\*name\) are not taken"),
    "python objects": ("a: !!python/object/apply:os.system [ls]", r"tags \(!name\) are not taken in .*line 1"),
    "a known tag": ("a: !!binary aGk=", r"tags \(!name\) are not taken"),
    "a local tag": ("a: !thing 1", r"tags \(!name\) are not taken"),
    "a name twice": ("a: 1\nb: 2\na: 3", "'a' stands twice in .*line 3"),
    "a number twice": ("1: a\n1: b", "1 stands twice"),
    "a list as a name": ("? [1]\n: 2", r"a name should be text or a whole number, got \[1\]"),
    "a fraction as a name": ("1.5: 2", "a name should be text or a whole number, got 1.5"),
    "a truth as a name": ("true: 2", "a name should be text or a whole number, got True"),
    "nothing as a name": ("~: 2", "a name should be text or a whole number, got None"),
    "depth": ("a: " + "[" * 100_000, "is not readable as YAML"),
    "two documents": ("a: 1\n---\nb: 2", "single document"),
    "bad indentation": ("a:\n  b: 1\n c: 2", "line 3"),
    "control characters": (b"a: \x00", "is not readable as YAML"),
    "no UTF-8": (b"a: \xff", "is not readable as YAML"),
    "a number of many digits": ("a: " + "9" * 5000, "is not readable as YAML"),
    "a list": ("[1, 2]", "should hold a mapping of names to values, got list"),
    "nothing": ("", "should hold a mapping of names to values, got NoneType"),
}


@pytest.mark.parametrize("text, message", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml(text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        read(text, tmp_path)
    assert str(tmp_path / "d.yaml") in str(raised.value) and "\n" not in str(raised.value)


HOSTILE_JSON = {
    "a list": "[1]",
    "no end": "{",
    "a name twice": '{"a": 1, "a": 2}',
    "depth": "[" * 100_000,
    "yaml": "a: 1",
    "no UTF-8": b"\xff",
}


@pytest.mark.parametrize("text", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_hostile_json(text, tmp_path):
    with pytest.raises(ValueError, match="d.json"):
        read(text, tmp_path, "d.json")


def test_large_files_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="has 11 bytes, more than the 10 of a description"):
        read("a: 1234567" + "\n", tmp_path)
    with pytest.raises(FileNotFoundError):
        read_document(tmp_path / "nothing.yaml")
