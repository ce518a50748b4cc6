"""The rules of CHANGELOG.md and of the version in CITATION.cff, by Keep a Changelog.

The version itself has one place, sparsesteer/__init__.py. It is the newest dated section's, or later and still to come;
then its changes stand under Unreleased.
"""

import re
from datetime import date
from itertools import pairwise, zip_longest

from packaging.version import InvalidVersion, Version

KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
UNRELEASED = "Unreleased"


def sections(changelog: str) -> dict[str, str]:
    """The text of every ``##`` section by its heading, newest first."""
    parts = re.split(r"^## (.+)$", changelog, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def released(changelog: str) -> dict[str, str]:
    """The date of every version that has one, newest first."""
    dates = (re.fullmatch(r"\[([^\]]+)\] - (.+)", heading) for heading in sections(changelog))
    return {match[1]: match[2] for match in dates if match}


def changelog_faults(changelog: str, version: str) -> list[str]:
    """What is wrong with the changelog of a package that has this version; empty if nothing is."""
    faults = [
        *_heading_faults(list(sections(changelog))),
        *_order_faults(released(changelog)),
        *_kind_faults(changelog),
        *_link_faults(changelog),
    ]
    return faults or _version_faults(changelog, version)


def citation_faults(citation: dict, changelog: str, version: str) -> list[str]:
    """What CITATION.cff says of the version that is not so."""
    wanted = {"version": version, "date-released": released(changelog).get(version)}
    found = {key: None if citation.get(key) is None else str(citation[key]) for key in wanted}
    return [
        f"CITATION.cff: {key} is {found[key]}, expected {wanted[key]}" for key in wanted if found[key] != wanted[key]
    ]


def _heading_faults(headings: list[str]) -> list[str]:
    if not headings or headings[0] != f"[{UNRELEASED}]":
        return [f"the first section must be [{UNRELEASED}], found {headings[:1]}"]
    wrong = [heading for heading in headings[1:] if not re.fullmatch(r"\[[^\]]+\] - \d{4}-\d{2}-\d{2}", heading)]
    return [f"{heading!r} is not of the form [1.2.3] - 2025-12-31" for heading in wrong]


def _order_faults(dates: dict[str, str]) -> list[str]:
    try:
        versions = [Version(version) for version in dates]
        days = [date.fromisoformat(day) for day in dates.values()]
    except (InvalidVersion, ValueError) as error:
        return [str(error)]
    falling = all(newer > older for newer, older in pairwise(versions))
    ordered = all(newer >= older for newer, older in pairwise(days))
    return [] if falling and ordered else [f"the newest version comes first: {dates}"]


def _kind_faults(changelog: str) -> list[str]:
    kinds = re.findall(r"^### (.+)$", changelog, re.MULTILINE)
    return [f"{kind!r} is none of {', '.join(KINDS)}" for kind in kinds if kind not in KINDS]


def _link_faults(changelog: str) -> list[str]:
    """Each section links to the changes since the version before it; relative, so that they follow the repository."""
    versions = list(released(changelog))
    wanted = {UNRELEASED: f"../../compare/v{versions[0]}...HEAD" if versions else "../../commits/HEAD"}
    for version, older in zip_longest(versions, versions[1:]):
        wanted[version] = f"../../compare/v{older}...v{version}" if older else f"../../releases/tag/v{version}"
    found = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", changelog, re.MULTILINE))
    faults = [
        f"[{name}] links to {found.get(name)}, expected {link}"
        for name, link in wanted.items()
        if found.get(name) != link
    ]
    return faults + [f"[{name}] has a link and no section" for name in found if name not in wanted]


def _version_faults(changelog: str, version: str) -> list[str]:
    versions = list(released(changelog))
    if versions[:1] == [version]:
        return []
    if version in versions or (versions and Version(version) < Version(versions[0])):
        return [f"the package is {version}, but {versions[0]} is out already"]
    changes = re.sub(r"\[[^\]]+\]: \S+", "", sections(changelog).get(f"[{UNRELEASED}]", "")).strip()
    return [] if changes else [f"nothing is written of {version}, neither a section nor under {UNRELEASED}"]
