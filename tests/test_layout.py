"""csrc/layout.h repeats the numbers of sparsesteer/_layout.py; Triton takes them from Python."""

import re
from enum import IntEnum
from pathlib import Path

import pytest

from sparsesteer import _layout

HEADER = (Path(__file__).resolve().parents[1] / "csrc/layout.h").read_text()


def enum_in(header: str, name: str) -> dict[str, int]:
    """The members of a C++ enum; one without a value follows the one before it."""
    found = re.search(rf"\benum (?:class )?{name}\b[^{{]*{{([^}}]*)}}", header)
    assert found, f"no enum {name}"
    members: dict[str, int] = {}
    following = 0
    for entry in re.sub(r"//[^\n]*", "", found[1]).split(","):
        if entry.strip():
            member, _, value = (part.strip() for part in entry.partition("="))
            members[member] = int(value) if value else following
            following = members[member] + 1
    return members


def test_enum_in_counts_as_c_does():
    assert enum_in("enum class E : int { A, B = 4,  // why\n C };", "E") == {"A": 0, "B": 4, "C": 5}


@pytest.mark.parametrize("enum", [_layout.InputNorm, _layout.OutputScale], ids=lambda enum: enum.__name__)
def test_codes_agree(enum: type[IntEnum]):
    assert enum_in(HEADER, enum.__name__) == {member.name: member.value for member in enum}


def test_columns_agree():
    columns = {member.name: member.value for member in _layout.Column}
    assert enum_in(HEADER, "Column") == columns | {"N_COLUMNS": _layout.N_COLUMNS}


def test_epsilon_agrees():
    found = re.search(r"\bLAYER_NORM_EPS = ([^;]+);", HEADER)
    assert found and float(found[1]) == _layout.LAYER_NORM_EPS
