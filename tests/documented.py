"""The code blocks of README.md and docs/: found, run, and their commands checked."""

import contextlib
import importlib.util
import io
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tomllib
import typer
from typer.testing import CliRunner

from sparsesteer.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r'title="([^"]+)"')

# Commands that are not run here, and why; all else about them is checked: options, targets, extras, files, modules.
NOT_RUN = {
    "sparsesteer bench": "takes minutes; tests/test_benchmarks.py runs it on small shapes",
    "sparsesteer mi": "takes minutes; tests/test_mi_cli.py runs it on a tiny model",
    "sparsesteer spare": "takes an hour; tests/test_spare_study.py runs it on a tiny model",
    "sparsesteer alignsae": "needs a model that knows the answers; tests/test_alignsae_world.py trains one",
    "sparsesteer serve": "needs vLLM; tests/test_vllm_server.py starts it",
    "make": "is what runs these tests, and takes minutes",
    "pip": "needs a package index; tests/test_release.py installs what is built",
    "python": "writes into the repository, or needs a device",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; one with a title is the file of that name."""

    page: Path
    line: int
    language: str
    title: str | None
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return blocks_of(page.read_text(), page)


def blocks_of(text: str, page: Path) -> list[Block]:
    """The same of a page's text. Raises ValueError for a fence that this module does not understand."""
    found = list(_BLOCK.finditer(text))
    fences = re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)
    if len(fences) != 2 * len(found):
        raise ValueError(f"{page}: {len(fences)} lines begin like fences, {len(found)} blocks were found")
    return [
        Block(
            page,
            text[: match.start()].count("\n") + 1,
            match[2],
            title[1] if (title := _TITLE.search(match[3])) else None,
            _dedented(match[4], len(match[1])),
        )
        for match in found
    ]


def run_page(page_blocks: list[Block]) -> tuple[dict, str]:
    """Runs the Python blocks one after the other, as one program, in the current folder; (its names, what it printed).

    Blocks with a title are written as files first. A text block is what the Python block before it prints.
    """
    names: dict = {"__name__": "__main__"}
    printed, everything = "", ""
    for block in page_blocks:
        if block.title is not None:
            Path(block.title).write_text(block.code)
    for block in page_blocks:
        if block.language == "python" and block.title is None:
            printed = _run(block, names)
            everything += printed
        elif block.language == "text":
            assert printed.strip() == block.code.strip(), f"{block} shows another output"
    return names, everything


def _run(block: Block, names: dict) -> str:
    printed = io.StringIO()
    # leading newlines: a traceback then shows the page's own line numbers
    code = compile("\n" * block.line + block.code, str(block.page), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block as lists of words, without comments."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def check_command(words: list[str]) -> None:
    """Runs a command of ours; of those in NOT_RUN it is checked that what they name exists.

    Raises:
        AssertionError: it fails, names what does not exist, or is of no kind that is known here.
    """
    program, *arguments = words
    if program == "sparsesteer" and " ".join(words[:2]) in NOT_RUN:
        _parse(arguments)
    elif program == "sparsesteer":
        _run_command(*arguments)
    else:
        assert program in NOT_RUN, f"this test does not know what to do with {words}"
        {"make": _check_make, "pip": _check_pip, "python": _check_python}[program](arguments)


@cache  # pages show the same commands
def _run_command(*arguments: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{arguments}: {result.output}{result.exception!r}"


def _parse(arguments: list[str]) -> None:
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.get_command(None, name)
    command.make_context(name, arguments)


def _check_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    unknown = {word for word in arguments if "=" not in word} - set(targets)
    assert not unknown, f"no targets of the Makefile: {unknown}"


def _check_pip(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert arguments[0] == "install", f"pip {arguments[0]}?"
    for word in arguments:
        extras = re.fullmatch(r"(?:sparsesteer|\.)\[([\w,-]+)\]", word)
        if extras:
            unknown = set(extras[1].split(",")) - set(project["optional-dependencies"])
            assert not unknown, f"{word} asks for extras that do not exist: {unknown}"


def _check_python(arguments: list[str]) -> None:
    is_script = arguments[0].endswith(".py") and (ROOT / arguments[0]).is_file()
    is_module = arguments[0] == "-m" and importlib.util.find_spec(arguments[1])
    assert is_script or is_module, f"no module or script: {arguments}"


def _dedented(code: str, indent: int) -> str:
    return "".join(line[indent:] if line.strip() else line for line in code.splitlines(keepends=True))
