"""Steering compiled models: Dynamo has no guard on hooks, so code from before or after must not be used."""

import models
import pytest
import torch
from models import plan, prompts
from torch._dynamo.testing import CompileCounter

import sparsesteer as ss

pytestmark = pytest.mark.usefixtures("one_thread")
SITE = 0


def wrap(model, counter):
    return torch.compile(model, backend=counter)


def in_place(model, counter):
    model.compile(backend=counter)
    return model


def one_block(model, counter):
    model.blocks[SITE].compile(backend=counter)
    return model


def wrapped_block(model, counter):
    model.blocks[SITE] = torch.compile(model.blocks[SITE], backend=counter)
    return model


def wrapped_inside_another(model, counter):
    return torch.nn.Sequential(torch.compile(model, backend=counter))


def patched_forward(model, counter):
    model.forward = torch.compile(model.forward, backend=counter)
    return model


def function_around(model, counter):
    return torch.compile(lambda *args, **kwargs: model(*args, **kwargs), backend=counter)


FORMS = [wrap, in_place, one_block, wrapped_block, wrapped_inside_another, patched_forward, function_around]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def expected():
    """Hidden states without steering, steered everywhere, at the last token only."""
    model, ids = models.Toy(), prompts()
    with torch.no_grad():
        outputs = [model(ids)]
        for positions in ("all", "last_prompt"):
            with ss.steer(model, {SITE: plan()}, positions=positions):
                outputs.append(model(ids))
    return outputs


def assert_output(model, expected):
    torch.testing.assert_close(model(prompts()), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("called_before", [True, False], ids=["called_before", "first_called_inside"])
def test_steered_inside_and_only_inside(form, called_before, expected):
    plain, everywhere, at_last = expected
    model, counter = models.Toy(), CompileCounter()
    compiled = form(model, counter)
    given = model if form is function_around else compiled
    if called_before:
        assert_output(compiled, plain)
    for positions, steered in (("all", everywhere), ("last_prompt", at_last)):
        with ss.steer(given, {SITE: plan()}, positions=positions) as steering:
            assert_output(compiled, steered)
            steering.strength = 0.0
            assert_output(compiled, plain)
        assert_output(compiled, plain)
    assert counter.frame_count > 0


@torch.no_grad()
def test_the_uncompiled_model_given_and_the_compiled_one_called(expected):
    model = models.Toy()
    compiled = torch.compile(model, backend="eager")
    assert_output(compiled, expected[0])
    with ss.steer(model, {SITE: plan()}):
        assert_output(compiled, expected[1])
        assert_output(model, expected[1])
    assert_output(compiled, expected[0])


@torch.no_grad()
@pytest.mark.parametrize("positions", ["all", "last_prompt"])
def test_one_graph_and_few_compilations_while_the_sequence_grows(positions):
    model, counter = models.Toy(), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with ss.steer(compiled, {SITE: plan()}, positions=positions):
        for n_tokens in (4, 5, 6, 9, 12, 17):
            ids = prompts(n_tokens=n_tokens)
            torch.testing.assert_close(compiled(ids), model(ids), atol=1e-5, rtol=1e-5)
    assert counter.frame_count <= 3


@torch.no_grad()
def test_a_changed_strength_stays_in_one_graph():
    model = models.Toy()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with ss.steer(compiled, {SITE: plan()}) as steering:
        for strength in (1.0, 2.0, 0.5, 3.0):
            steering.strength = strength
            torch.testing.assert_close(compiled(prompts()), model(prompts()), atol=1e-5, rtol=1e-5)


def test_gradients_through_compiled_code():
    model, ids = models.Toy(), prompts()
    with ss.steer(model, {SITE: plan()}):
        model(ids).square().sum().backward()
    expected = model.embedding.weight.grad.clone()
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager")
    with ss.steer(compiled, {SITE: plan()}):
        compiled(ids).square().sum().backward()
    assert expected.norm() > 0
    torch.testing.assert_close(model.embedding.weight.grad, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_generation_of_a_compiled_language_model():
    model, ids = models.llama(n_layers=1), prompts()
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False}
    plain = model.generate(ids, **options)
    with ss.steer(model, {SITE: plan()}, positions="generated"):
        expected = model.generate(ids, **options)
    assert not torch.equal(expected, plain)
    model.compile(backend="eager", dynamic=True)
    model(ids)
    with ss.steer(model, {SITE: plan()}, positions="generated"):
        assert torch.equal(model.generate(ids, **options), expected)
