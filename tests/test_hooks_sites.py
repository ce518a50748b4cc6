"""The names that a place in a model has."""

import models
import pytest
import torch
from models import build, hidden_states, plan, prompts, steered_by_hand

import sparsesteer as ss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=tuple(models.BLOCKS))
def family(request):
    return request.param


@pytest.fixture
def llama():
    return models.llama()


@torch.no_grad()
def test_every_name_of_a_site(family):
    model, ids = build(family), prompts()
    path = f"{models.BLOCKS[family]}.1"
    with ss.steer(model, {1: plan()}):
        expected = model(ids).logits
    for site in (
        "blocks.1.hook_resid_post",
        path,
        path.partition(".")[2],
        "blocks.2.hook_resid_pre",
        ss.Site(None, path),
    ):
        with ss.steer(model, {site: plan()}):
            assert torch.equal(model(ids).logits, expected), site
    with ss.steer(model, plan(site="blocks.1.hook_resid_post")):
        assert torch.equal(model(ids).logits, expected)


@torch.no_grad()
def test_the_base_model_can_be_given_by_its_full_path(family):
    model, ids = build(family), prompts()
    with ss.steer(model, {1: plan()}):
        expected = model(ids).logits
    with ss.steer(model.base_model, {f"{models.BLOCKS[family]}.1": plan()}):
        assert torch.equal(model(ids).logits, expected)


@torch.no_grad()
def test_residual_before_the_first_block(llama):
    edit, ids = plan(), prompts()
    embedded = llama.model.embed_tokens(ids)
    with ss.steer(llama, {"blocks.0.hook_resid_pre": edit}):
        states = hidden_states(llama, ids)
    assert torch.equal(states[0], ss.ops.steer(embedded, edit))


@torch.no_grad()
def test_a_module_inside_a_block(llama):
    edit, ids = plan(), prompts()
    with steered_by_hand(llama.model.layers[1].mlp, lambda h: ss.ops.steer(h, edit)):
        expected = llama(ids).logits
    with ss.steer(llama, {"model.layers.1.mlp": edit}):
        assert torch.equal(llama(ids).logits, expected)
