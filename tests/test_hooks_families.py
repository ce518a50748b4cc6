"""Every family at every hook point: the bits of a hook written by hand with the same op, and of plain torch but for
rounding; eager and compiled, with and without a cache."""

import contextlib

import families
import models
import pytest
import torch
from families import build
from models import prompts
from transformers import DynamicCache

import sparsesteer as ss
from sparsesteer.model.hook_points import FAMILIES, family
from sparsesteer.model.sites import ModelSites
from sparsesteer.reference import activate, edit_deltas

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCK = 0
N_NEW = 4
KINDS = ("llama", "gemma2", "olmo2", "gpt2", "gpt_neox", "falcon", "mixtral")  # one family of each layout
AT_ONCE = ("hook_resid_pre", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "mlp.hook_in", "hook_mlp_out")


def module_and_side(model, point):
    """Where a hook point lies, as a hook by hand needs it."""
    place = ModelSites.of(model).resolve(f"blocks.{BLOCK}.{point}")
    return place.module, place.side


def writable(model):
    inside = [point for point, where in FAMILIES[family(model.config)].items() if not where.endswith(".normalized")]
    return ["hook_resid_pre", *inside, "hook_resid_post"]


@contextlib.contextmanager
def changed_by_hand(model, changes):
    """Hooks as one writes them, at each hook point."""
    with contextlib.ExitStack() as hooks:
        for point, change in changes.items():
            module, side = module_and_side(model, point)
            hooks.callback(_register(module, side, change).remove)
        yield


def _register(module, side, change):
    def after(module, args, output):
        return change(output) if isinstance(output, torch.Tensor) else (change(output[0]), *output[1:])

    def before(module, args, kwargs):
        if not args:
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}
        return (change(args[0]), *args[1:]), kwargs

    def in_place(module, args):
        args[0].copy_(change(args[0]))

    if side == "output":
        return module.register_forward_hook(after)
    if side == "stream":
        return module.register_forward_pre_hook(in_place)
    return module.register_forward_pre_hook(before, with_kwargs=True)


def width_at(model, point):
    seen = []
    with changed_by_hand(model, {point: lambda h: seen.append(h.shape[-1]) or h}):
        model(prompts())
    return seen[0]


def plans_at(model, points):
    return {point: models.plan(width=width_at(model, point), seed=i) for i, point in enumerate(points)}


def at_sites(plans):
    return {f"blocks.{BLOCK}.{point}": plan for point, plan in plans.items()}


def with_the_op(plans):
    return {point: lambda h, plan=plan: ss.ops.steer(h, plan) for point, plan in plans.items()}


def in_plain_torch(plan, h):
    f = activate(h @ plan.encoder.T + plan.rows[:, 0], plan.rows)
    return h + edit_deltas(f, plan.rows) @ plan.decoder + plan.delta_bias


def greedy_logits(model, ids, **options):
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_NEW, min_new_tokens=N_NEW, do_sample=False,
        return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip
    return torch.stack(out.logits)


@torch.no_grad()
@pytest.mark.parametrize("name", families.CONFIGS)
def test_each_hook_point_has_the_bits_of_a_hook_by_hand(name):
    model, ids = build(name), prompts()
    for point, plan in plans_at(model, writable(model)).items():
        plain = model(ids).logits
        with changed_by_hand(model, with_the_op({point: plan})):
            expected = model(ids).logits
        with ss.steer(model, at_sites({point: plan})):
            assert torch.equal(model(ids).logits, expected), point
        assert (expected - plain).abs().max() > 0.1, point
        with changed_by_hand(model, {point: lambda h, plan=plan: in_plain_torch(plan, h)}):
            close = model(ids).logits
        assert (close - expected).norm() < 1e-5 * (expected - plain).norm(), point
        assert torch.equal(model(ids).logits, plain), point


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", families.CONFIGS)
def test_generation_has_the_bits_of_hooks_by_hand(name, use_cache):
    model, ids = build(name), prompts()
    plans = plans_at(model, [point for point in AT_ONCE if point in writable(model)])
    with changed_by_hand(model, with_the_op(plans)):
        expected = greedy_logits(model, ids, use_cache=use_cache)
    with ss.steer(model, at_sites(plans)):
        assert torch.equal(greedy_logits(model, ids, use_cache=use_cache), expected)
    assert not torch.equal(greedy_logits(model, ids, use_cache=use_cache), expected)


def compiled_logits(model, ids, backend, with_cache):
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend)
    if not with_cache:
        return [compiled(ids, use_cache=False).logits]
    cache = DynamicCache(config=model.config)
    return [compiled(part, past_key_values=cache).logits for part in (ids[:, :-1], ids[:, -1:])]


def check_compiled(model, backend, with_cache=False):
    ids = prompts()
    plans = plans_at(model, [point for point in AT_ONCE if point in writable(model)])
    with changed_by_hand(model, with_the_op(plans)):
        eager = model(ids).logits
        expected = compiled_logits(model, ids, backend, with_cache)
    torch.testing.assert_close(torch.cat(expected, dim=1), eager, atol=1e-3, rtol=1e-3)
    with ss.steer(model, at_sites(plans)):
        got = compiled_logits(model, ids, backend, with_cache)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_compiled_code_has_the_bits_of_hooks_by_hand(name):
    check_compiled(build(name, n_layers=1), "aot_eager")


@torch.no_grad()
def test_code_of_inductor_has_the_bits_of_hooks_by_hand():
    check_compiled(build("llama", n_layers=1), "inductor")


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("with_cache", [True, False], ids=["cache", "no_cache"])
@pytest.mark.parametrize("name", families.CONFIGS)
def test_code_of_inductor_for_every_family(name, with_cache):
    check_compiled(build(name), "inductor", with_cache)
