"""The documentation's site: it builds without a warning, loads nothing from elsewhere, and has every public name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparsesteer as ss

ROOT = Path(__file__).resolve().parents[1]
NAMES = [f"sparsesteer.{name}" for name in ss.__all__ if name != "ops"]
OPS = [f"sparsesteer.ops.{name}" for name in ss.ops.__all__ if name not in ss.__all__]
# what a page loads when it is opened, in contrast to where its links lead
_LOADED = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*?\bsrc=["']?([^"'\s>]+)|<link\b[^>]*?>""")
_IN_STYLES = re.compile(r"""(?:url\(|@import\s*)["']?(https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="mkdocs, a part of the extra 'docs', is not installed")
    pytest.importorskip("mkdocstrings_handlers.python", reason="mkdocstrings-python, of the extra 'docs', is missing")
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    said = result.stdout + result.stderr
    assert result.returncode == 0 and "WARNING" not in said, said
    return folder


def test_it_has_every_page(site):
    sources = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    # a folder's README is its first page
    pages = {path.with_name("index.html" if path.stem == "README" else f"{path.stem}.html") for path in sources}
    assert pages | {Path(f"{name}.html") for name in ("readme", "changelog", "contributing")} <= {
        path.relative_to(site) for path in site.rglob("*.html")
    }


def test_pages_load_nothing_from_other_servers(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        for match in _LOADED.finditer(text):
            link = re.search(r'\bhref="?([^"\s>]+)', match[0]) if match[0].startswith("<link") else None
            loaded = link[1] if link else match[1] or ""
            assert not loaded.startswith(("http:", "https:", "//")), f"{page.name} loads {loaded}"
        styles = "".join(re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL))
        assert not _IN_STYLES.search(styles), page.name
    for sheet in site.rglob("*.css"):
        assert not _IN_STYLES.search(sheet.read_text()), sheet.name


def test_every_link_leads_somewhere(site):
    for page in set(site.rglob("*.html")) - {site / "404.html"}:  # whose links start at a server's root
        for target, anchor in re.findall(r'<a\b[^>]*\bhref="?([^"#\s>]*)(?:#([^"\s>]+))?', page.read_text()):
            if ":" in target or not (target or anchor):
                continue
            file = (page.parent / target).resolve() if target else page
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{page.name} links to {target}"
            if anchor and file.suffix == ".html":
                assert re.search(rf'\bid="?{re.escape(anchor)}[" >]', file.read_text()), (
                    f"{page.name}: {target}#{anchor}"
                )


@pytest.mark.parametrize("name", NAMES + OPS)
def test_the_reference_has_every_public_name(name):
    assert re.search(rf"^::: {re.escape(name)}$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)


def test_the_reference_shows_what_it_names(site):
    page = (site / "api.html").read_text()
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE):
        assert f'id="{name}"' in page or f"id={name}" in page, name
