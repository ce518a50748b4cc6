"""Edits as the command line writes them: ``set:123=8``, ``scale:99=0,7=2``, ``ablate:5,6``, ``floor:4=2:active``."""

from collections.abc import Iterable

from sparsesteer.edits import Edit

VALUE_RULES = {"set": Edit.set, "add": Edit.add, "scale": Edit.scale, "cap": Edit.cap, "floor": Edit.floor}
RULES = (*VALUE_RULES, "ablate")
WHEN_ACTIVE = "active"


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

    ``:active`` changes a feature only where it is active.

    Raises:
        ValueError: naming the bad piece.
    """
    rule, *parts = text.split(":")
    if rule not in RULES:
        raise ValueError(f"--edit {text!r}: unknown rule {rule!r}; use one of {', '.join(RULES)}, as in set:123=8")
    if len(parts) not in (1, 2) or not parts[0]:
        raise ValueError(f"--edit {text!r}: expected {rule}:{'5,6' if rule == 'ablate' else '123=8'}")
    if len(parts) == 2 and (parts[1] != WHEN_ACTIVE or rule == "ablate"):
        way_out = "an inactive feature is 0 already" if rule == "ablate" else f"only {WHEN_ACTIVE!r} can stand there"
        raise ValueError(f"--edit {text!r}: the suffix {parts[1]!r} does not fit {rule}; {way_out}")
    pieces = parts[0].split(",")
    if rule == "ablate":
        return Edit.ablate([_feature(text, piece) for piece in pieces])
    values: dict[int, float] = {}
    for piece in pieces:
        feature, value = _assignment(text, piece)
        if feature in values:
            raise ValueError(f"--edit {text!r}: feature {feature} is named twice")
        values[feature] = value
    return VALUE_RULES[rule](values, when_active=len(parts) == 2)


def _assignment(text: str, piece: str) -> tuple[int, float]:
    feature, equals, value = piece.partition("=")
    if not equals:
        raise ValueError(f"--edit {text!r}: {piece!r} should be feature=value, as in 123=8")
    try:
        return _feature(text, feature), float(value)
    except ValueError as error:
        if not value or str(error).startswith("could not convert"):
            raise ValueError(f"--edit {text!r}: {value!r} in {piece!r} is not a number") from error
        raise


def _feature(text: str, piece: str) -> int:
    if not piece.strip().isdecimal():
        raise ValueError(f"--edit {text!r}: {piece!r} is not a feature; features are whole numbers from 0")
    return int(piece)
