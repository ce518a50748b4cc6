"""Edits as the command line writes them: ``set:123=8``, ``scale:99=0,7=2``, ``ablate:5,6``, ``floor:4=2:active``,
``set:music=2x-max``, ``add:"big cats"=3``."""

import re
from collections.abc import Iterable

from sparsesteer.edits import VALUE_RULES, Edit, Feature, Value

RULES = (*VALUE_RULES, "ablate")
WHEN_ACTIVE = "active"
# quoted words and addresses are one token each, so that what stands in them divides nothing
_TOKEN = re.compile(r'"[^"]*"|https?://[^\s,=]*|.', re.DOTALL)


def parse_edits(texts: Iterable[str]) -> Edit:
    """All edits joined.

    Raises:
        ValueError: a text that is no edit, naming the bad piece; a feature named twice.
    """
    edit = Edit()
    for text in texts:
        edit = edit | parse_edit(text)
    return edit


def parse_edit(text: str) -> Edit:
    """``rule:feature=value[,feature=value...][:active]`` or ``ablate:feature[,feature...]``.

    A feature is a number, words of the SAE's explanations (in double quotes if they have a comma, colon or equals
    sign), or an id or address of Neuronpedia. A value is a number, or relative to the feature's maximum: ``2x-max``.
    ``:active`` changes a feature only where it is active.

    Raises:
        ValueError: naming the bad piece.
    """
    rule, _, rest = text.partition(":")
    if rule not in RULES:
        raise ValueError(f"--edit {text!r}: unknown rule {rule!r}; use one of {', '.join(RULES)}, as in set:123=8")
    parts = _split(rest, ":")
    if len(parts) > 2 or not parts[0]:
        raise ValueError(f"--edit {text!r}: expected {rule}:{'5,6' if rule == 'ablate' else '123=8'}")
    if len(parts) == 2 and (parts[1] != WHEN_ACTIVE or rule == "ablate"):
        way_out = "an inactive feature is 0 already" if rule == "ablate" else f"only {WHEN_ACTIVE!r} can stand there"
        raise ValueError(f"--edit {text!r}: the suffix {parts[1]!r} does not fit {rule}; {way_out}")
    pieces = _split(parts[0], ",")
    if rule == "ablate":
        return Edit.ablate([_feature(text, piece) for piece in pieces])
    values: dict[Feature, Value] = {}
    for piece in pieces:
        feature, value = _assignment(text, piece)
        if feature in values:
            raise ValueError(f"--edit {text!r}: feature {feature} is named twice")
        values[feature] = value
    try:
        return VALUE_RULES[rule](values, when_active=len(parts) == 2)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--edit {text!r}: {error}") from error


def _split(text: str, divider: str) -> list[str]:
    pieces = [""]
    for token in _TOKEN.findall(text):
        if token == divider:
            pieces.append("")
        else:
            pieces[-1] += token
    return pieces


def _assignment(text: str, piece: str) -> tuple[Feature, Value]:
    feature, *values = _split(piece, "=")
    if len(values) != 1:
        raise ValueError(f"--edit {text!r}: {piece!r} should be feature=value, as in 123=8")
    [value] = values
    if value.strip().lower().endswith("max"):
        return _feature(text, feature), value
    try:
        number = float(value)
    except ValueError as error:
        raise ValueError(f"--edit {text!r}: {value!r} in {piece!r} is not a number, nor like 2x-max") from error
    return _feature(text, feature), number


def _feature(text: str, piece: str) -> Feature:
    name = piece.strip()
    if name.isdecimal():
        return int(name)
    quoted = re.fullmatch('"([^"]*)"', name)
    words = quoted[1] if quoted else name
    if not any(letter.isalpha() for letter in words) or (not quoted and "=" in words):
        raise ValueError(f"--edit {text!r}: {piece!r} is not a feature; features are whole numbers from 0, or words")
    return words
