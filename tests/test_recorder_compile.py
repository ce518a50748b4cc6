"""Recording compiled models: what is found inside compiled code is taken in outside of it."""

import models
import pytest
import torch
from models import prompts
from test_hooks_compile import FORMS, function_around
from test_recorder import FEATURES, make_sae
from torch._dynamo.testing import CompileCounter

import sparsesteer as ss
from sparsesteer import Edit

pytestmark = pytest.mark.usefixtures("one_thread")
SITE = 0


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def sae():
    return make_sae()


@pytest.fixture(scope="module")
def expected(sae):
    """A recording of the model as it is, steered at its last token."""
    model, steered = models.Toy(), sae.plan(Edit.set({3: 4.0}))
    with torch.no_grad(), ss.steer(model, {SITE: steered}, positions="last_prompt"):
        with ss.record(model, sae, {SITE: FEATURES}) as recording:
            model(prompts())
    return recording


def same(recording, expected):
    assert torch.equal(recording.tokens, expected.tokens)
    torch.testing.assert_close(recording.before, expected.before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(recording.after, expected.after, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("called_before", [True, False], ids=["called_before", "first_called_inside"])
def test_recorded_inside_and_only_inside(form, called_before, sae, expected):
    model, counter = models.Toy(), CompileCounter()
    compiled = form(model, counter)
    given = model if form is function_around else compiled
    plain = models.Toy()(prompts())
    if called_before:
        compiled(prompts())
    with ss.record(given, sae, {SITE: FEATURES}) as recording:
        with ss.steer(given, {SITE: sae.plan(Edit.set({3: 4.0}))}, positions="last_prompt"):
            compiled(prompts())
    same(recording, expected)
    torch.testing.assert_close(compiled(prompts()), plain, atol=1e-5, rtol=1e-5)
    assert len(recording) == 12 and counter.frame_count > 0


@torch.no_grad()
def test_one_graph_and_few_compilations_while_the_sequence_grows(sae):
    model, counter = models.Toy(), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with ss.record(compiled, sae, {SITE: FEATURES}) as recording:
        for n_tokens in (4, 5, 6, 9, 12, 17):
            compiled(prompts(n_tokens=n_tokens))
    assert len(recording) == 2 * sum((4, 5, 6, 9, 12, 17))
    assert counter.frame_count <= 3


@torch.no_grad()
def test_generation_of_a_compiled_language_model(sae):
    model, ids = models.llama(n_layers=1), prompts()
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with ss.record(model, sae, {SITE: FEATURES}) as expected:
        model.generate(ids, **options)
    model.compile(backend="eager", dynamic=True)
    with ss.record(model, sae, {SITE: FEATURES}) as recording:
        model.generate(ids, **options)
    same(recording, expected)
    assert torch.equal(recording.positions, expected.positions)
