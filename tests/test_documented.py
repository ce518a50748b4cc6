"""Every code block of README.md, CONTRIBUTING.md and docs/ runs as it stands; a new page is covered by being there."""

import json
import re
import sys
from importlib import util
from pathlib import Path

import pytest
import torch
import yaml
from documented import NOT_RUN, PAGES, ROOT, Block, blocks, blocks_of, check_command, commands, run_page
from fake_hub import TOKEN
from stand_ins import PUBLISHED, demo_sae, no_downloads, smollm2
from test_hub import hub  # noqa: F401, a fixture

import sparsesteer as ss
from sparsesteer.specs.spec import parse_spec

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("python", "bash", "yaml", "json", "text")
BLOCKS = [block for page in PAGES for block in blocks(page)]


def of_kind(language):
    return [pytest.param(block, id=str(block)) for block in BLOCKS if block.language == language]


def named(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def downloaded():
    try:
        smollm2()
    except ImportError as error:
        pytest.skip(f"the pages run on SmolLM2: {error}")
    with no_downloads():
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder whose modules can be imported while the test runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


def readme_steers(names, printed, folder, hub):  # noqa: F811
    inputs, output = names["inputs"], names["output"]
    unsteered = names["model"].generate(**inputs, max_new_tokens=10)
    assert not torch.equal(output[:, : unsteered.shape[1]], unsteered)
    assert printed.strip() == names["tokenizer"].decode(output[0], skip_special_tokens=True).strip()


def quick_start_steers(names, printed, folder, hub):  # noqa: F811
    assert not torch.equal(names["output"], names["stronger"])


def edits_find_features(names, printed, folder, hub):  # noqa: F811
    assert names["plan"].features.tolist() == [99]
    assert names["feature"].in_sae_lens() == ("gpt2-small-res-jb", "blocks.8.hook_resid_pre")


def sharing_writes_files(names, printed, folder, hub):  # noqa: F811
    assert names["spec"] == ss.load_spec("elephants.json") == ss.load_spec("elephants.yaml")
    assert names["plan"].features.tolist() == [5, 6, 99, 123, 2116]
    assert "you/elephants" in hub.repositories
    assert {path.name for path in folder.glob("*.gguf")} == {"vector.gguf", "vectors.gguf"}


def watching_sees_the_edit(names, printed, folder, hub):  # noqa: F811
    recording = names["recording"]
    assert recording.before.shape == (names["inputs"]["input_ids"].shape[1] + 29, 2)
    assert not torch.equal(recording.before, recording.after)
    assert {path.name for path in folder.iterdir()} == {"doctor.html", "doctor.png", "doctor.safetensors"}
    assert torch.equal(ss.Recording.load("doctor.safetensors").after, recording.after)
    assert "feature 178 at token" in printed


# what a page's program should have done, beyond its own assertions
DONE = {
    "README.md": readme_steers,
    "docs/index.md": quick_start_steers,
    "docs/edits.md": edits_find_features,
    "docs/sharing.md": sharing_writes_files,
    "docs/watching.md": watching_sees_the_edit,
}


@pytest.mark.usefixtures("downloaded")
@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "python"}), ids=named)
def test_python_runs(page, folder, monkeypatch, hub):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    names, printed = run_page(blocks(page))
    if named(page) in DONE:
        DONE[named(page)](names, printed, folder, hub)


@pytest.mark.usefixtures("downloaded")
@pytest.mark.parametrize("block", of_kind("bash"))
def test_commands_run(block, folder):
    found = commands(block)
    assert found, "an empty block"
    for words in found:
        check_command(words)


@pytest.mark.parametrize("block", of_kind("yaml") + of_kind("json"))
def test_data_is_what_it_looks_like(block):
    document = {"yaml": yaml.safe_load, "json": json.loads}[block.language](block.code)
    if "edits" in document:
        parse_spec(document, str(block))


def test_every_block_is_of_a_kind_that_runs():
    unknown = [f"{block} ({block.language})" for block in BLOCKS if block.language not in KINDS]
    assert not unknown, f"write one of {KINDS} behind the fence, or teach this test the kind"


def test_text_stands_below_the_code_that_prints_it():
    for page in PAGES:
        kinds = [block.language for block in blocks(page)]
        orphans = [block for block, before in zip(blocks(page), [None, *kinds], strict=False)
                   if block.language == "text" and before != "python"]  # fmt: skip
        assert not orphans, f"{orphans[0]} is no block's output"


def test_indented_blocks_hold_formulas_alone():
    """They are not run, so no code hides in them."""
    code = re.compile(r"^ {4,}(?:\$|>>>|pip |python|make |sparsesteer |import |from \w+ import |with )", re.MULTILINE)
    for page in PAGES:
        outside = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        assert not code.findall(outside), f"{named(page)}: put this into a fenced block"


def test_files_that_are_named_exist():
    """Paths in backticks, from the repository's root. Those of the op ``fold`` are an example."""
    path = re.compile(r"`((?:sparsesteer|csrc|kernels|tests|benchmarks|examples|docs|release)/[\w./-]+)`")
    for page in PAGES:
        missing = [name for name in path.findall(page.read_text()) if not (ROOT / name).exists() and "fold" not in name]
        assert not missing, f"{named(page)} names {missing}"


def test_what_is_downloaded_is_published():
    package = util.find_spec("sae_lens")
    if package is None:
        pytest.skip("sae-lens, a part of the extra 'lens', is not installed")
    listed = Path(package.submodule_search_locations[0]) / "pretrained_saes.yaml"
    releases = yaml.load(listed.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for release, sae_id in PUBLISHED:
        assert sae_id in [sae["id"] for sae in releases[release]["saes"]]


def test_the_readmes_example_fits_on_a_screen():
    (example,) = [block for block in blocks(ROOT / "README.md") if block.language == "python"]
    assert len([line for line in example.code.splitlines() if line.strip()]) <= 12


def test_whatever_is_not_run_is_used_and_says_why():
    lines = [" ".join(words) for block in BLOCKS if block.language == "bash" for words in commands(block)]
    assert all(reason and any(line.startswith(kind) for line in lines) for kind, reason in NOT_RUN.items())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("```python\n1\n", "1 lines begin"),
        ("~~~python\n1\n~~~\n", "2 lines begin"),
        ("```python\n1\n````\n", "2 lines"),
    ],
    ids=["open", "tildes", "uneven"],
)
def test_no_block_is_overlooked(text, match):
    with pytest.raises(ValueError, match=match):
        blocks_of(text, Path("page.md"))


def test_a_wrong_output_is_seen():
    page = "```python\nprint(1)\n```\n```text\n2\n```\n"
    with pytest.raises(AssertionError, match="shows another output"):
        run_page(blocks_of(page, ROOT / "page.md"))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("sparsesteer features --nonsense x", "(?i)no such option"),
        ("sparsesteer bench --nonsense", "(?i)no such option"),
        ("make nonsense", "no targets of the Makefile: {'nonsense'}"),
        ('pip install ".[lens,nonsense]"', "extras that do not exist: {'nonsense'}"),
        ("python -m sparsesteer.nonsense", "no module"),
        ("curl https://example.org", "does not know what to do"),
    ],
)
def test_a_wrong_command_is_seen(line, error, folder):
    (words,) = commands(Block(ROOT / "page.md", 1, "bash", None, line))
    with pytest.raises(Exception, match=error):
        check_command(words)


def test_the_stand_in_of_the_demonstration_is_the_real_one():
    assert demo_sae().site.model_name == "HuggingFaceTB/SmolLM2-135M-Instruct"
