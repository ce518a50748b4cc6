"""Damaged and hostile files of every format: errors that name the file, or an SAE of use; nothing ever runs."""

import random

import cases_lens
import cases_owners
import fuzz
import pytest
import torch
from test_loaders import saved

from sparsesteer import SAE, Edit

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


def saelens(root):
    folder, _ = saved(
        root / "sae",
        "jumprelu",
    )
    return folder


FAMILIES = {
    "saelens": saelens,
    "saelens transcoder": cases_owners.CASES["jumprelu skip transcoder"],
    "gemma scope": cases_lens.CASES["gemma scope res"],
    "gemma scope packed": cases_lens.CASES["gemma scope packed"],
    "gemma scope 2": cases_lens.CASES["gemma scope 2 skip transcoder"],
    "llama scope": cases_lens.CASES["llama scope"],
    "sparsify": cases_owners.CASES["sparsify skip transcoder"],
    "dictionary_learning": cases_owners.CASES["BatchTopKSAE"],
    "goodfire": cases_lens.CASES["goodfire"],
    "deepseek r1": cases_lens.CASES["deepseek r1"],
    "qwen scope": cases_lens.CASES["qwen scope"],
    "circuit tracer": cases_lens.CASES["circuit tracer"],
    "attention gpt2": cases_lens.CASES["attention gpt2"],
}


def use(path):
    """Load, plan and encode. What is refused is refused by a ValueError (or FileNotFoundError) that names the file."""
    sae = SAE.load_from_disk(path)
    edit = Edit.set({0: 1.0}) | Edit.ablate([sae.d_sae - 1])
    x = torch.linspace(-1, 1, 2 * sae.d_in).view(2, sae.d_in)
    plan = sae.plan(edit)
    assert plan.encoder.shape == (1 + (sae.d_sae > 1), sae.d_in)
    assert sae.encode(x).shape == (2, sae.d_sae)
    assert sae.decode(torch.zeros(2, sae.d_sae), like=x).shape == (2, sae.d_out)


def fuzzed(make, root, count, seed):
    made = make(root)
    original = fuzz.Original.of(root, getattr(made, "path", made))
    use(original.path)
    rng, canary = random.Random(seed), root.parent / f"{root.name}-canary"
    used, refused = 0, 0
    for i in range(count):
        what = fuzz.damage(original, rng, canary)
        try:
            use(original.path)
            used += 1
        except (ValueError, FileNotFoundError) as error:
            assert str(original.folder) in str(error), f"{i}: {what}: the file is not named: {error}"
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{i}: {what}: {type(error).__name__}: {error}") from error
        assert not canary.exists(), f"{i}: {what}: a pickle was run"
        original.restore()
    return used, refused


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_damaged_files(make, tmp_path):
    used, refused = fuzzed(make, tmp_path / "root", 200, seed=1)
    assert used and refused > 50


@pytest.mark.slow
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_ten_thousand_damaged_files(make, tmp_path):
    used, refused = fuzzed(make, tmp_path / "root", 10_000, seed=2)
    print(f"{used} used, {refused} refused")
    assert used > 500 and refused > 2000  # it reaches both sides
