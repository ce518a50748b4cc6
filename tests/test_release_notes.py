"""The changelog, the citation file and the one version agree; the rules notice when they do not."""

import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import yaml

import sparsesteer

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # release/ belongs to the repository, not to the package

from release.notes import changelog_faults, citation_faults, released  # noqa: E402

CHANGELOG = """# Changelog

## [Unreleased]

## [0.10.0] - 2025-11-02

### Fixed

- A fault.

## [0.9.0] - 2025-10-31

### Added

- Everything.

[Unreleased]: ../../compare/v0.10.0...HEAD
[0.10.0]: ../../compare/v0.9.0...v0.10.0
[0.9.0]: ../../releases/tag/v0.9.0
"""
UNRELEASED = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A start.\n\n[Unreleased]: ../../commits/HEAD\n"


def test_the_changelog_follows_its_rules():
    assert not changelog_faults((ROOT / "CHANGELOG.md").read_text(), sparsesteer.__version__)


def test_the_citation_names_the_version_and_its_date():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert not citation_faults(citation, (ROOT / "CHANGELOG.md").read_text(), sparsesteer.__version__)


def validate(citation: Path) -> subprocess.CompletedProcess:
    """Ask the schema that comes with check-jsonschema."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.citation-file-format", citation]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_citation_follows_its_schema(tmp_path):
    pytest.importorskip("check_jsonschema")
    result = validate(ROOT / "CITATION.cff")
    assert result.returncode == 0, result.stdout
    broken = tmp_path / "CITATION.cff"
    broken.write_text((ROOT / "CITATION.cff").read_text().replace("type: conference-paper", "type: paper"))
    assert "'paper' is not one of" in validate(broken).stdout


def test_the_citation_refers_to_the_three_papers():
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert [reference["url"].rsplit("/", 1)[1] for reference in references] == [
        "2410.15999",
        "2512.02004",
        "2502.15576",
    ]


def test_the_version_has_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sparsesteer.__version__"}


@pytest.mark.parametrize(
    ("changelog", "version"),
    [
        (CHANGELOG, "0.10.0"),
        (CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n### Added\n\n- More.\n", 1), "0.11.0"),
    ]
    + [(UNRELEASED, "0.1.0")],
    ids=["released", "to come", "never released"],
)
def test_a_good_changelog_has_no_fault(changelog, version):
    assert changelog_faults(changelog, version) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("## [Unreleased]\n\n", "", "the first section must be [Unreleased]"),
        ("2025-11-02", "2 November 2025", "'[0.10.0] - 2 November 2025' is not of the form"),
        ("2025-11-02", "2025-11-31", "day is out of range for month"),
        ("2025-11-02", "2025-10-02", "the newest version comes first"),
        ("[0.10.0] - ", "[0.8.0] - ", "the newest version comes first"),
        ("[0.10.0] - ", "[new] - ", "Invalid version: 'new'"),
        ("### Fixed", "### Repaired", "'Repaired' is none of Added, Changed"),
        ("...HEAD", "...main", "[Unreleased] links to ../../compare/v0.10.0...main"),
        ("[0.9.0]: ../../releases/tag/v0.9.0\n", "", "[0.9.0] links to None"),
        ("[0.9.0]: ", "[0.8.0]: ../../releases/tag/v0.8.0\n[0.9.0]: ", "[0.8.0] has a link and no section"),
    ],
)
def test_a_fault_of_the_changelog_is_found(old, new, fault):
    assert old in CHANGELOG
    assert any(fault in found for found in changelog_faults(CHANGELOG.replace(old, new, 1), "0.10.0"))


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("0.9.0", "the package is 0.9.0, but 0.10.0 is out already"),
        ("0.9.5", "the package is 0.9.5, but 0.10.0 is out already"),
        ("0.11.0", "nothing is written of 0.11.0, neither a section nor under Unreleased"),
    ],
)
def test_a_version_that_does_not_fit_the_changelog_is_found(version, fault):
    assert changelog_faults(CHANGELOG, version) == [fault]


def test_a_date_that_the_citation_lacks_is_found():
    assert released(CHANGELOG)["0.10.0"] == "2025-11-02"
    assert citation_faults({"version": "0.10.0"}, CHANGELOG, "0.10.0") == [
        "CITATION.cff: date-released is None, expected 2025-11-02"
    ]
