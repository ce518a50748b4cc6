"""How much a spec adds, in norms of the stream, and what is refused."""

import pytest
import torch
from serving_cases import WIDTH, sae_at, tiny_llama

import sparsesteer as ss
from sparsesteer.serving import ServedSpec, measured_stream_norms, spec_files
from sparsesteer.serving.admission import Admission, Capacity, Demand
from sparsesteer.serving.doses import dose_of
from sparsesteer.serving.limits import Limits
from sparsesteer.serving.settings import settings_of

NORM = 20.0


@pytest.fixture(scope="module")
def sae():
    return sae_at(1)


def edits():
    return {
        "set": ss.Edit.set({3: 6.0, 7: -2.0}),
        "add": ss.Edit.add({3: 6.0, 5: 1.0}),
        "floor": ss.Edit.floor({3: 6.0}),
        "mixed": ss.Edit.set({3: 6.0}) | ss.Edit.add({9: 4.0}) | ss.Edit.scale({20: 5.0}),
    }


@pytest.mark.parametrize("name", edits())
def test_the_dose_is_what_a_silent_token_gets(sae, name):
    """A token at which nothing fires is moved by the constant part alone."""
    silent = sae_at(1, ss.JumpReLU(threshold=torch.full((256,), 1e9)))
    plan = silent.plan(edits()[name])
    h = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0))
    moved = (ss.ops.steer(h, plan) - h).norm().item()
    spec = ServedSpec(sae.plan(edits()[name]), strength=-0.5)
    assert dose_of(spec, {1: NORM}, "x") == pytest.approx(0.5 * moved / NORM, rel=1e-4)


@pytest.mark.parametrize("edit", [ss.Edit.scale({3: 90.0}), ss.Edit.ablate([3, 4]), ss.Edit.cap({3: 0.1})])
def test_what_changes_only_what_is_there_has_no_dose(sae, edit):
    assert dose_of(ServedSpec(sae.plan(edit)), {}, "x") == 0


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
def test_plans_that_follow_the_norm_of_the_stream_need_no_number(normalize):
    given = sae_at(1)
    scaled = ss.SAE(
        W_enc=given.W_enc, W_dec=given.W_dec, b_enc=given.b_enc, b_dec=given.b_dec, activation=ss.ReLU(),
        normalize=normalize, site=given.site,
    )  # fmt: skip
    spec = ServedSpec(scaled.plan(ss.Edit.add({3: 4.0})))
    h = 7 * torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
    moved = (ss.ops.steer(h, spec.by_block()[1]) - h).norm(dim=1) / h.norm(dim=1)
    dose = dose_of(spec, {}, "x")
    assert moved.max() <= dose * 1.0001 and moved.mean() > 0.9 * dose


def test_too_much_is_refused_when_it_is_registered(sae):
    spec = ServedSpec(sae.plan(ss.Edit.set({3: 6.0})))
    dose = dose_of(spec, {1: NORM}, "x")
    data = spec_files.to_bytes(spec)
    spec_files.from_bytes(data, limits=Limits(dose=dose * 1.01, stream_norm={1: NORM}))
    with pytest.raises(ValueError, match="times the norm of the stream, at most"):
        spec_files.from_bytes(data, limits=Limits(dose=dose * 0.99, stream_norm={1: NORM}))
    with pytest.raises(ValueError, match="norm of the stream after block 1 is not known; .* has blocks 2"):
        spec_files.from_bytes(data, limits=Limits(dose=1.0, stream_norm={2: NORM}))


def test_a_request_may_not_ask_for_more_by_its_strength():
    books = Admission(Capacity(4, []), Limits(dose=0.5))
    books.learn("a" * 16, Demand("all", 1.0, {}, dose=0.4), "a")
    books.enter("a@-1.2", 5)
    with pytest.raises(ValueError, match="a@1.5 adds 0.6 times the norm of the stream, at most 0.5 is taken"):
        books.enter("a@1.5", 5)
    assert books.status()["refused"] == {"strength": 1}


def test_the_norms_stand_in_the_settings():
    limits = settings_of({"sparsesteer": {"limits": {"dose": 0.5, "stream_norm": {"16": 40}}}}).limits
    assert limits.dose == 0.5 and limits.stream_norm == {16: 40.0}


@pytest.mark.parametrize("norms", [3.0, {"x": 1.0}, {1: None}, {1: 0.0}, {1: float("nan")}])
def test_norms_that_are_none(norms):
    with pytest.raises(ValueError, match="stream"):
        Limits(stream_norm=norms)


def test_norms_are_measured_behind_the_first_token():
    model, ids = tiny_llama(), torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    found, seen = measured_stream_norms(model, ids, [0, 2]), []
    handle = model.model.layers[2].register_forward_hook(lambda block, args, output: seen.append(output))
    with torch.no_grad():
        model(ids)
    handle.remove()
    stream = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert found.keys() == {0, 2} and found[2] == pytest.approx(stream[:, 1:].norm(dim=-1).median().item(), rel=1e-5)
    with pytest.raises(ValueError, match="numbers from 0 to 2, got"):
        measured_stream_norms(model, ids, [3])
