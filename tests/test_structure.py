"""The shape of the source tree: imports point down, heavy libraries stay in their rooms, files stay short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sparsesteer"
LINKED = ("kernels", "benchmarks")

# A module may import its own floor and those below. A new module needs a line here.
FLOORS = (
    ("_layout", "_gradients", "reference", "kernels"),
    ("_schemas", "_native", "_build_result", "_C", "_dispatch"),
    ("ops",),
    (
        "activations",
        "bank",
        "decoding",
        "digest",
        "documents",
        "edits",
        "explanations",
        "feature_page",
        "files",
        "loaders",
        "logit_lens",
        "lowering",
        "naming",
        "neuronpedia",
        "plain_json",
        "plans",
        "sae",
        "saving",
        "screen",
        "site",
        "storage",
        "weights",
        "word_index",
        "writing",
    ),
    ("model",),
    ("datasets", "generation", "hooks", "methods", "recording", "site_edits", "specs"),
    ("__init__", "_public"),
    ("serving",),
    ("benchmarks",),
    ("cli", "demo"),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

# benchmarks compare with every competitor and may import all of them
ROOMS = {
    "triton": ("kernels",),
    "sae_lens": ("demo", "loaders"),
    "transformers": ("cli", "demo", "hooks", "methods"),
    "vllm": ("serving",),
}


def modules() -> list[Path]:
    """The files of the package, relative to it; pathlib does not follow the two symlinks."""
    own = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "_build_result.py"]
    linked = [path.relative_to(ROOT) for name in LINKED for path in (ROOT / name).rglob("*.py")]
    return sorted(set(own) | set(linked))


def room(module: Path) -> str:
    """The part of the package a file belongs to: sae for sae.py, cli for cli/demo.py."""
    return module.parts[0].removesuffix(".py")


def imports(source: str, package: str = "sparsesteer") -> Iterator[str]:
    """The absolute names of everything a source imports, at any depth, except for type checking."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*parent, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(module: Path) -> list[str]:
    package = ".".join(["sparsesteer", *module.parts[:-1]])
    return sorted(set(imports((PACKAGE / module).read_text(), package)))


def test_imports_sees_every_form_but_type_checking():
    source = """
import os.path
from sparsesteer import ops
if TYPE_CHECKING:
    from sparsesteer import cli
def f():
    from . import plans
    from ..sae import SAE
"""
    assert set(imports(source, "sparsesteer.cli")) == {
        "os.path",
        "sparsesteer.ops",
        "sparsesteer.cli.plans",
        "sparsesteer.sae.SAE",
    }


@pytest.mark.parametrize("module", modules(), ids=str)
def test_imports_point_down(module):
    assert room(module) in FLOOR, f"give {room(module)} a floor in FLOORS"
    for name in imports_of(module):
        top, _, rest = name.partition(".")
        if top != "sparsesteer":
            continue
        imported = rest.split(".")[0]
        public = imported not in FLOOR  # a name of __init__, whose floor is the top
        assert FLOOR["__init__" if public else imported] <= FLOOR[room(module)], f"{module} imports {name}, above it"


@pytest.mark.parametrize("module", modules(), ids=str)
def test_heavy_libraries_stay_in_their_rooms(module):
    if room(module) == "benchmarks":
        return
    for name in imports_of(module):
        library = name.split(".")[0]
        assert room(module) in ROOMS.get(library, (room(module),)), f"{module} imports {library}"


@pytest.mark.parametrize("name", LINKED)
def test_linked_folders_are_relative_symlinks_without_an_init(name):
    link = PACKAGE / name
    assert link.is_symlink() and link.readlink() == Path("..", name)
    # a regular package `kernels` beside us would hide Hugging Face's, which transformers imports
    assert not (ROOT / name / "__init__.py").exists()


def test_the_repository_root_holds_one_package():
    """With the root on sys.path any other package or module there could hide somebody else's."""
    assert [path.parent.name for path in ROOT.glob("*/__init__.py")] == ["sparsesteer"]
    assert [path.name for path in ROOT.glob("*.py")] == ["setup.py"]


def test_no_module_is_both_a_file_and_a_folder():
    files = {path.with_suffix("") for path in PACKAGE.rglob("*.py")}
    folders = {path for path in PACKAGE.rglob("*") if path.is_dir()}
    assert not files & folders


@pytest.mark.parametrize(
    ("folders", "suffixes", "most"),
    [
        (("sparsesteer", "kernels", "benchmarks", "examples", "release", "tests"), (".py",), 300),
        (("csrc",), (".cpp", ".h", ".cu", ".cuh"), 250),
    ],
    ids=["python", "c++"],
)
def test_files_stay_short(folders, suffixes, most):
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert not {name: lines for name, lines in lengths.items() if lines > most}, "split it into two rooms"
