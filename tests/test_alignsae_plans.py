"""Every form of a swap against the released program's lines, written out; where plans act; slots and their file."""

import json

import pytest
import torch

import sparsesteer as ss
from sparsesteer.methods.alignsae import FORMS
from sparsesteer.methods.alignsae.controls import random_direction, random_slot

pytestmark = pytest.mark.usefixtures("one_thread")
D, FREE = 16, 30
CONCEPTS = ("date", "city", "school")
ALPHA, SOURCE, TARGET = 1.7, 0, 2


def sae_of(rest, **options):
    generator = torch.Generator().manual_seed(0)
    return ss.SAE(
        W_enc=torch.randn(D, FREE + 3, generator=generator) / D**0.5,
        W_dec=torch.randn(FREE + 3, D, generator=generator),
        b_enc=torch.randn(FREE + 3, generator=generator),
        b_dec=torch.randn(D, generator=generator),
        activation=ss.Slots(3, rest=rest),
        site=ss.Site(hook_name="blocks.1.hook_resid_post"),
        **({"apply_b_dec_to_input": False} | options),
    )


@pytest.fixture
def aligned():
    return ss.AlignSAE(sae_of(ss.Identity()), CONCEPTS)


def released(aligned, h, form):
    """What the released hook script does with one state [D]; columns of its decoder are rows of ours."""
    W_e, b_e, W_d, b_d = aligned.sae.W_enc, aligned.sae.b_enc, aligned.sae.W_dec, aligned.sae.b_dec
    z = h @ W_e + b_e
    x_norm = h.norm()
    d_source, d_target = W_d[FREE + SOURCE], W_d[FREE + TARGET]
    if form == "latent_decode":
        z_swapped = z.clone()
        z_swapped[-(3 - SOURCE)] = 0.0
        z_swapped[-(3 - TARGET)] = float(ALPHA)
        return z_swapped @ W_d + b_d
    if form == "decoder_column":
        beta_target = x_norm / (d_target.norm() + 1e-8)
        return h + ALPHA * beta_target * d_target
    if form == "decoder_column_both":
        beta_target = x_norm / (d_target.norm() + 1e-8)
        beta_source = x_norm / (d_source.norm() + 1e-8)
        return h + ALPHA * (beta_target * d_target - beta_source * d_source)
    if form == "orthogonal":
        proj = (d_target @ d_source) / (d_source @ d_source + 1e-8)
        d_target_orth = d_target - proj * d_source
        beta_target = x_norm / (d_target_orth.norm() + 1e-8)
        beta_source = x_norm / (d_source.norm() + 1e-8)
        return h + ALPHA * (beta_target * d_target_orth - beta_source * d_source)
    diff = d_target - d_source
    beta = x_norm / (diff.norm() + 1e-8)
    return h + ALPHA * beta * diff


@pytest.mark.parametrize("form", FORMS[2:])
def test_published_forms_are_the_released_programs(aligned, form):
    h = torch.randn(5, D, generator=torch.Generator().manual_seed(2))
    found = ss.ops.steer(h, aligned.plan("date", "school", ALPHA, form))
    wanted = torch.stack([released(aligned, row, form) for row in h])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, h, atol=0.1)


@pytest.mark.parametrize("rest", [ss.Identity(), ss.ReLU(), ss.JumpReLU(0.4)], ids=lambda a: type(a).__name__)
def test_the_slot_edit_is_the_published_one_and_the_error_kept(rest):
    aligned = ss.AlignSAE(sae_of(rest), CONCEPTS)
    h = torch.randn(5, D, generator=torch.Generator().manual_seed(2))
    found = ss.ops.steer(h, aligned.plan(SOURCE, TARGET, ALPHA))
    error = h - aligned.sae.decode(aligned.sae.encode(h))
    decoded = ss.ops.steer(h, aligned.plan(SOURCE, TARGET, ALPHA, "latent_decode"))
    torch.testing.assert_close(found, decoded + error, atol=1e-5, rtol=1e-5)
    assert error.norm() > 0.1


def test_move_is_the_slot_edit_where_the_slots_are_as_trained(aligned):
    h = torch.randn(5, D, generator=torch.Generator().manual_seed(2))
    d_source, d_target = aligned.sae.W_dec[FREE + SOURCE], aligned.sae.W_dec[FREE + TARGET]
    plan = aligned.plan(SOURCE, TARGET, ALPHA, "move")
    z = aligned.slots(h)[:, SOURCE, None]
    torch.testing.assert_close(ss.ops.steer(h, plan), h + z * (ALPHA * d_target - d_source), atol=1e-5, rtol=1e-5)
    W, b = aligned.sae.W_enc[:, FREE:], aligned.sae.b_enc[FREE:]
    trained = torch.linalg.lstsq(W.T, torch.tensor([1.0, 0.0, 0.0]) - b).solution[None]  # asks for the source alone
    other = torch.linalg.lstsq(W.T, torch.tensor([0.0, 1.0, 0.0]) - b).solution[None]
    slot = ss.ops.steer(trained, aligned.plan(SOURCE, TARGET, ALPHA))
    torch.testing.assert_close(ss.ops.steer(trained, plan), slot, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ss.ops.steer(other, plan), other, atol=1e-4, rtol=1e-4)
    assert (ss.ops.steer(other, aligned.plan(SOURCE, TARGET, ALPHA)) - other).norm() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_plans_are_files_like_any_other(aligned, form, tmp_path):
    plan = aligned.plan(1, 0, 2.0, form)
    again = ss.SteeringPlan.load(plan.save(tmp_path / "plan.safetensors"), aligned.sae)
    h = torch.randn(4, D)
    assert torch.equal(ss.ops.steer(h, again), ss.ops.steer(h, plan))


def test_slots_are_the_last_features(aligned):
    h = torch.randn(2, 5, D)
    torch.testing.assert_close(aligned.slots(h), aligned.sae.encode(h)[..., FREE:])
    assert torch.equal(aligned.concept_of(h), aligned.sae.encode(h)[..., FREE:].argmax(-1))
    assert [aligned.feature(c) for c in (*CONCEPTS, 1)] == [FREE, FREE + 1, FREE + 2, FREE + 1]


@pytest.mark.parametrize("rest", [ss.Identity(), ss.ReLU(), ss.JumpReLU(torch.rand(FREE + 3))], ids=str)
def test_round_trip(rest, tmp_path):
    aligned = ss.AlignSAE(sae_of(rest, normalize="layer_norm"), CONCEPTS, about={"prompts": 3})
    again = ss.AlignSAE.load(aligned.save(tmp_path / "aligned"))
    assert again.concepts == CONCEPTS and again.about == {"prompts": 3} and again.sae.digest == aligned.sae.digest
    sae = ss.SAE.load_from_disk(tmp_path / "aligned")  # like any other SAE
    h = torch.randn(4, D)
    assert torch.equal(sae.encode(h), aligned.sae.encode(h)) and sae.site.hook_name == "blocks.1.hook_resid_post"
    with pytest.raises(FileExistsError, match="exists already"):
        aligned.save(tmp_path / "aligned")


def test_folders_that_are_refused(aligned, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        ss.AlignSAE.load(tmp_path / "nothing")
    aligned.sae.save(tmp_path / "plain")
    with pytest.raises(ValueError, match="has no alignsae.safetensors"):
        ss.AlignSAE.load(tmp_path / "plain")
    aligned.save(tmp_path / "one")
    sae_of(ss.ReLU()).save(tmp_path / "other")
    (tmp_path / "other" / "alignsae.safetensors").write_bytes((tmp_path / "one" / "alignsae.safetensors").read_bytes())
    with pytest.raises(ValueError, match="belongs to other weights"):
        ss.AlignSAE.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rest": "gelu"}, "the rest of slots should be one of"),
        ({"n_slots": "three"}, "n should be a whole number"),
        ({"n_slots": 100}, "n should be at most"),
    ],
)
def test_configurations_that_are_refused(aligned, change, message, tmp_path):
    folder = aligned.sae.save(tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        ss.SAE.load_from_disk(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("date", "date"), "the same concept"),
        (("date", "nonsense"), "no concept 'nonsense'; there are 0 to 2: date, city, school"),
        (("date", 3), "no concept 3"),
        (("date", -1), "no concept -1"),
        (("date", "city", float("inf")), "alpha should be a finite number"),
        (("date", "city", 2.0, "swap"), "form should be one of slot, move"),
    ],
)
def test_swaps_that_are_refused(aligned, arguments, message):
    with pytest.raises(ValueError, match=message):
        aligned.plan(*arguments)


def test_saes_without_slots_are_refused():
    weights = {"W_enc": torch.ones(D, 5), "W_dec": torch.ones(5, D)}
    with pytest.raises(ValueError, match="ss.Slots"):
        ss.AlignSAE(ss.SAE(**weights, activation=ss.ReLU()), CONCEPTS)
    with pytest.raises(ValueError, match="3 slots need as many different names"):
        ss.AlignSAE(ss.SAE(**weights, activation=ss.Slots(3, ss.ReLU())), ("date", "date", "city"))
    with pytest.raises(ValueError, match="no value heads"):
        ss.AlignSAE(ss.SAE(**weights, activation=ss.Slots(3, ss.ReLU())), CONCEPTS).first_token(torch.ones(1, D), 0)


def test_controls_edit_elsewhere_and_as_much(aligned):
    plan = random_slot(aligned, 2.0, "slot")(0, 1)
    assert plan.features.tolist() == [FREE, FREE + 2]
    turned, own = random_direction(aligned, 2.0)(0, 1), aligned.plan(0, 1)
    torch.testing.assert_close(turned.decoder.norm(dim=-1), own.decoder.norm(dim=-1))
    assert torch.cosine_similarity(turned.decoder, own.decoder, dim=-1).abs().max() < 0.95
