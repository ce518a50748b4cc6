"""For mkdocs: README, CHANGELOG and CONTRIBUTING become pages of the site; links to and in them and notebooks work."""

import re
from pathlib import Path
from posixpath import relpath

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# mkdocs takes a README for the front page
PAGES = {"README.md": "readme.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
_TO_THE_REPOSITORY = re.compile(r"^\[[^\]]+\]: \.\./.*\n", re.MULTILINE)  # only the host of the repository knows these


def on_files(files, config):
    """Adds the pages, and the pictures of the README."""
    for name, page in PAGES.items():
        text = _TO_THE_REPOSITORY.sub("", (ROOT / name).read_text())
        files.append(File.generated(config, page, content=_LINK.sub(_from_the_root, text)))
    for picture in re.findall(r"!\[[^\]]*\]\(((?!docs/)[^)]+)\)", (ROOT / "README.md").read_text()):
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links that leave docs/ for one of the pages."""
    folder = Path(page.file.src_uri).parent

    def inside(match):
        target = Path("docs", folder, match[0])
        name = PAGES.get(relpath(target.as_posix()))
        return match[0] if name is None or "docs" in Path(match[0]).parts else relpath(name, folder.as_posix())

    return _LINK.sub(inside, markdown)


def on_post_page(output, page, config):
    """Links from one notebook to another, which the plugin that shows them leaves as they are."""
    return re.sub(r'(<a href="[\w-]+)\.ipynb"', r'\1.html"', output)


def _from_the_root(match):
    return PAGES.get(match[0], match[0].removeprefix("docs/"))
