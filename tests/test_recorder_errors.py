"""Bad input to ``ss.record``, and places that cannot be recorded: what was expected, what came, the way out."""

import models
import pytest
import torch
from models import WIDTH, prompts
from test_hooks import hook_count
from test_recorder import EDITS, make_sae
from torch import nn

import sparsesteer as ss
from sparsesteer import Edit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llama():
    return models.llama()


@pytest.fixture(scope="module")
def sae():
    return make_sae()


BAD = [
    (lambda m, s: ss.record(m, s, []), ValueError, "no feature was given to watch at blocks.1.hook_resid_post"),
    (lambda m, s: ss.record(m, s, [48]), ValueError, "feature 48 is out of range, this SAE has 0 to 47"),
    (lambda m, s: ss.record(m, s, [-1]), ValueError, "counted from 0, got -1"),
    (lambda m, s: ss.record(m, s, [1.5]), TypeError, "record: a feature is a whole number, got 1.5"),
    (lambda m, s: ss.record(m, s, [True]), TypeError, "a feature is a whole number, got True"),
    (lambda m, s: ss.record(m, s, [3, 3]), ValueError, "feature 3 is named twice"),
    (lambda m, s: ss.record(m, s, 3), TypeError, "features should be a list of features, an Edit or a plan, got 3"),
    (lambda m, s: ss.record(m, s, "12"), TypeError, "features should be a list of features"),
    (lambda m, s: ss.record(m, s, Edit()), ValueError, "no feature was given"),
    (lambda m, s: ss.record(m, None, [3]), TypeError, r"sae should be an SAE or \{site: SAE\}, got NoneType"),
    (lambda m, s: ss.record(m, {}, [3]), ValueError, "no site was given"),
    (lambda m, s: ss.record(m, {1: s}, {2: [3]}), ValueError, r"SAEs are for sites \[1\], the features for \[2\]"),
    (lambda m, s: ss.record(m, {9: s}, [3]), ValueError, "record: there is no block 9; it has blocks 0 to 2"),
    (lambda m, s: ss.record(object(), s, [3]), TypeError, "record: model should be a torch.nn.Module"),
    (lambda m, s: ss.record(m, make_sae(site=None), [3]), ValueError, r"name one: ss.record\(model, \{15: sae\}"),
    (lambda m, s: ss.record(m, make_sae(width=20), [3]), ValueError, "SAE has width 20, the model has width 32"),
    (lambda m, s: ss.record(m, s, make_sae(width=20).plan(EDITS)), ValueError, "plan is of width 20"),
    (lambda m, s: ss.record(m, s, make_sae(seed=9).plan(EDITS)), ValueError, "made from another SAE"),
    (lambda m, s: ss.record(m, s, [3], last=-1), ValueError, "last should be a number of tokens or None, got -1"),
    (lambda m, s: ss.record(m, s, [3], on_tokens=3), TypeError, "on_tokens should be a function, got int"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_bad_input(llama, sae, call, error, message):
    with pytest.raises(error, match=message):
        call(llama, sae)
    assert hook_count(llama) == 0


@torch.no_grad()
def test_a_place_that_returns_no_tensor(llama, sae):
    with ss.record(llama, {"model": sae}, [3]), pytest.raises(TypeError, match="model returns BaseModelOutput"):
        llama(prompts())


@torch.no_grad()
def test_a_place_that_runs_twice_or_not_at_all(llama, sae):
    twice = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    model = nn.Sequential(twice, twice)
    message = "ran 2 times in one call of the model"
    with ss.record(model, {"0.0": sae}, [3]), pytest.raises(RuntimeError, match=message):
        model(torch.randn(2, 3, WIDTH))
    model = models.llama()
    model.spare = nn.Linear(WIDTH, WIDTH)
    with ss.record(model, {"spare": sae}, [3]), pytest.raises(RuntimeError, match="spare ran 0 times"):
        model(prompts())


@torch.no_grad()
def test_a_place_that_sees_other_tokens(llama, sae):
    class Half(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, *args, **kwargs):
            return self.block(*args, **kwargs)[:, :3]

    model = nn.Sequential(Half(nn.Linear(WIDTH, WIDTH)))
    with ss.record(model, {"0": sae}, [3]), pytest.raises(RuntimeError, match=r"saw \[2, 3\] tokens in a call of"):
        model(torch.randn(2, 6, WIDTH))
