"""Plans: lowering, joining, dtypes, and files that are whole, damaged, foreign or hostile."""

import json
import os
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import sparsesteer as ss
from sparsesteer import SAE, Edit, Site, SteeringPlan
from sparsesteer._layout import Column, InputNorm, OutputScale

D, F = 6, 20
TENSORS = ("encoder", "decoder", "rows", "features", "constant_features", "delta_bias")
SITE = Site("a model", "blocks.3.hook_resid_post", None, "release/sae")


def random_sae(activation=None, seed=0, dtype=torch.float32, **rest):
    g = torch.Generator().manual_seed(seed)
    b_enc, b_dec = torch.randn(F, generator=g), torch.randn(D, generator=g)
    W_enc, W_dec = torch.randn(D, F, generator=g), torch.randn(F, D, generator=g)
    activation = activation or ss.JumpReLU(torch.rand(F, generator=g))
    return SAE(
        W_enc=W_enc.to(dtype), W_dec=W_dec.to(dtype), b_enc=b_enc, b_dec=b_dec, activation=activation, site=SITE, **rest
    )


EDIT = Edit.set({3: 2.5}) | Edit.cap({0: 1}, when_active=True) | Edit.add({7: 0.1, 9: -4})
PLANS = {
    "rows": lambda: random_sae().plan(EDIT),
    "fp64": lambda: random_sae(dtype=torch.float64).plan(EDIT),
    "bf16 rows": lambda: random_sae().plan(EDIT).to(dtype=torch.bfloat16),
    "layer_norm, norm kept": lambda: random_sae(normalize="layer_norm").plan(EDIT, preserve_norm=True),
    "topk": lambda: random_sae(ss.TopK(4)).plan(EDIT),
    "reconstruct": lambda: random_sae(normalize="constant_norm_rescale").plan(EDIT, reconstruct=True),
    "slots": lambda: random_sae(ss.Slots(5, rest=ss.JumpReLU(0.2))).plan(Edit.set({3: 1, 15: 2, 14: 3})),
    "identity": lambda: random_sae(ss.Identity()).plan(EDIT),
    "constant only": lambda: random_sae().plan(Edit.add({7: 1})),
    "nothing": lambda: random_sae().plan(Edit()),
}


def assert_same(a, b):
    for name in TENSORS:
        left, right = getattr(a, name), getattr(b, name)
        if left is None or right is None:
            assert left is right is None
            continue
        assert left.dtype == right.dtype and left.shape == right.shape
        assert torch.equal(left.view(torch.uint8), right.view(torch.uint8)), name
    for name in ("input_norm", "scale_rule", "gap", "preserve_norm", "k", "reconstruct", "site", "sae_digest"):
        assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize("make", PLANS.values(), ids=PLANS)
def test_saved_and_loaded_to_the_bit(make, tmp_path):
    plan = make()
    path = plan.save(tmp_path / "new" / "folder" / "plan.safetensors")
    assert_same(SteeringPlan.load(path), plan)
    assert SteeringPlan.load(path).site == SITE
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_saving_again_replaces_and_keeps_the_usual_permissions(tmp_path):
    path = tmp_path / "plan.safetensors"
    random_sae().plan(Edit()).save(path)
    random_sae().plan(EDIT).save(path)
    assert_same(SteeringPlan.load(path), random_sae().plan(EDIT))
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("name", ["topk", "reconstruct"])
def test_a_plan_that_needs_its_sae_gets_it_back(name, tmp_path):
    plan = PLANS[name]()
    path = plan.save(tmp_path / "plan.safetensors")
    h = torch.randn(4, D)
    with pytest.raises(ValueError, match="needs its SAE"):
        ss.ops.steer(h, SteeringPlan.load(path))
    assert torch.equal(ss.ops.steer(h, SteeringPlan.load(path, sae=plan.sae)), ss.ops.steer(h, plan))
    assert os.path.getsize(path) < 4096  # a reference, not a copy


def test_a_plan_under_another_activation_names_the_way_back(tmp_path):
    sae = random_sae()
    plan = sae.plan(EDIT, activation=ss.ReLU(), reconstruct=True)
    path = plan.save(tmp_path / "plan.safetensors")
    with pytest.raises(ValueError, match="with_activation"):
        SteeringPlan.load(path, sae=sae)
    h = torch.randn(4, D)
    loaded = SteeringPlan.load(path, sae=sae.with_activation(ss.ReLU()))
    assert torch.equal(ss.ops.steer(h, loaded), ss.ops.steer(h, plan))
    assert not torch.equal(ss.ops.steer(h, plan), ss.ops.steer(h, sae.plan(EDIT, reconstruct=True)))


def test_another_sae_is_refused(tmp_path):
    path = random_sae().plan(EDIT).save(tmp_path / "plan.safetensors")
    SteeringPlan.load(path, sae=random_sae())
    with pytest.raises(ValueError, match="made from another SAE"):
        SteeringPlan.load(path, sae=random_sae(seed=1))


def test_every_truncation_is_refused(tmp_path):
    whole = PLANS["rows"]().save(tmp_path / "plan.safetensors").read_bytes()
    part = tmp_path / "part.safetensors"
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        part.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="part.safetensors is not a readable safetensors file"):
            SteeringPlan.load(part)


def test_a_missing_file_is_called_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        SteeringPlan.load(tmp_path / "nothing.safetensors")


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match="not a steering plan"):
        SteeringPlan.load(path)
    save_file({"weight": torch.ones(2, 2)}, path, metadata={"sparsesteer": json.dumps({"version": 1})})
    with pytest.raises(ValueError, match="not a complete steering plan"):
        SteeringPlan.load(path)


def parts(path):
    """(tensors, description) of a saved plan."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["sparsesteer"])


DAMAGE = {
    "newer version": (lambda t, d: d.update(version=2), "plan of version 2, this sparsesteer reads 1"),
    "unknown norm": (lambda t, d: d.update(input_norm="RMS_NORM"), "RMS_NORM"),
    "norm as a list": (lambda t, d: d.update(input_norm=[]), "input_norm is"),
    "k as text": (lambda t, d: d.update(k="3"), "k is '3'"),
    "k negative": (lambda t, d: d.update(k=-3), "k should not be negative"),
    "gap not finite": (lambda t, d: d.update(gap=float("inf")), "gap finite"),
    "flag as text": (lambda t, d: d.update(reconstruct="false"), "reconstruct is 'false'"),
    "site of numbers": (lambda t, d: d["site"].update(hook_name=3), "hook_name is 3"),
    "unknown site": (lambda t, d: d["site"].update(floor="third"), "floor"),
    "site as text": (lambda t, d: d.update(site="blocks.3"), "not a complete"),
    "no site": (lambda t, d: d.pop("site"), "site"),
    "no rows": (lambda t, d: t.pop("rows"), "rows"),
    "rows too narrow": (lambda t, d: t.update(rows=t["rows"][:, :9].clone()), "rows should have shape"),
    "rows of integers": (lambda t, d: t.update(rows=t["rows"].nan_to_num(0, 0, 0).int()), "rows should be"),
    "features of floats": (lambda t, d: t.update(features=t["features"].float()), "features should be"),
    "negative feature": (lambda t, d: t.update(features=-1 - t["features"]), "counted from 0"),
    "encoder flat": (lambda t, d: t.update(encoder=t["encoder"].flatten()), r"shapes \[M, D\]"),
    "encoder of no width": (lambda t, d: t.update(encoder=t["encoder"][:, :0].clone()), r"shapes \[M, D\]"),
    "encoder fp16": (lambda t, d: t.update(encoder=t["encoder"].half(), decoder=t["decoder"].half()), "encoder should"),
    "one row fewer": (lambda t, d: t.update(decoder=t["decoder"][:1].clone()), "decoder should have shape"),
    "NaN in the encoder": (lambda t, d: t["encoder"].fill_(float("nan")), "encoder has NaN"),
    "inf in the constant part": (lambda t, d: t["delta_bias"].fill_(float("inf")), "delta_bias has NaN"),
    "NaN in the table": (lambda t, d: t["rows"][1].fill_(float("nan")), "rows have NaN"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(damage, message, tmp_path):
    path = PLANS["rows"]().save(tmp_path / "plan.safetensors")
    tensors, description = parts(path)
    damage(tensors, description)
    save_file(tensors, path, metadata={"sparsesteer": json.dumps(description)})
    with pytest.raises(ValueError, match=message) as raised:
        SteeringPlan.load(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, '{"version": 1, "version": 1}'], ids=len)
def test_a_description_that_is_no_object_is_refused(text, tmp_path):
    path = tmp_path / "plan.safetensors"
    save_file({"x": torch.ones(1)}, path, metadata={"sparsesteer": text})
    with pytest.raises(ValueError, match="description"):
        SteeringPlan.load(path)


def test_random_bytes_raise_value_errors_or_load_finite_plans(tmp_path):
    whole = PLANS["rows"]().save(tmp_path / "plan.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    chance, path, loaded = random.Random(0), tmp_path / "fuzzed.safetensors", 0
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(header if chance.random() < 0.7 else len(whole))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            plan = SteeringPlan.load(path)
        except ValueError:
            continue
        loaded += 1
        assert torch.isfinite(plan.encoder).all() and plan.rows.shape == (len(plan), 10)
    assert 0 < loaded < 600


def test_a_pickle_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "plan.safetensors"
    torch.save({"encoder": Bomb()}, path)
    with pytest.raises(ValueError, match="not a readable safetensors"):
        SteeringPlan.load(path)
    assert not (tmp_path / "executed").exists()


def test_lowering_by_hand():
    W_enc = torch.tensor([[1.0, 2, 3], [10, 20, 30]])
    W_dec = torch.tensor([[1.0, 1], [5, 6], [7, 8]])
    sae = SAE(
        W_enc=W_enc, W_dec=W_dec, b_enc=torch.tensor([0.5, 0.25, 0.125]), b_dec=torch.tensor([1.0, 2]),
        activation=ss.JumpReLU(torch.tensor([7.0, 8, 9])),
    )  # fmt: skip
    plan = sae.plan(Edit.floor({2: 4}) | Edit.scale({0: 3}, when_active=True) | Edit.add({1: 2}))
    assert plan.encoder.tolist() == [[1, 10], [3, 30]] and plan.decoder.tolist() == [[1, 1], [7, 8]]
    assert plan.features.tolist() == [0, 2] and plan.constant_features.tolist() == [1]
    assert plan.delta_bias.tolist() == [10, 12]
    # bias = b_enc - W_enc . b_dec
    assert plan.rows.tolist() == [
        [0.5 - 21, 7, 1, 0, 0, 0, 2, 0, 0, 1],
        [0.125 - 63, 9, 1, 0, 0, 4, -1, 1, 4, 0],
    ]


def test_slots_are_the_last_rows():
    plan = random_sae(ss.Slots(5, rest=ss.JumpReLU(0.25))).plan(Edit.set({14: 1, 15: 2, 0: 3, 19: 4}))
    inf = float("inf")
    assert plan.rows[:, Column.THRESHOLD].tolist() == [0.25, 0.25, -inf, -inf]
    assert plan.rows[:, Column.FLOOR].tolist() == [0, 0, -inf, -inf]


def test_an_edit_that_changes_nothing_touches_nothing():
    plan = random_sae().plan(Edit.scale({3: 1}) | Edit.add({4: 0}))
    assert len(plan) == 0 and plan.delta_bias is None and plan.constant_features.tolist() == [3, 4]
    h = torch.tensor([[-0.0] * D])
    assert torch.equal(torch.signbit(ss.ops.steer(h, plan)), torch.signbit(h))


@pytest.mark.parametrize("activation", [ss.ReLU(), ss.TopK(4)])
@pytest.mark.parametrize("reconstruct", [False, True])
def test_joined_plans_are_the_plan_of_the_joined_edit(activation, reconstruct):
    sae = random_sae(activation)
    edits = Edit.set({3: 2.5}), Edit.add({7: 0.5}), Edit.add({9: -4}), Edit.cap({0: 1})
    plans = [sae.plan(edit, reconstruct=reconstruct) for edit in edits]
    joined = sae.plan(edits[0] | edits[1] | edits[2] | edits[3], reconstruct=reconstruct)
    h = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    for order in ((0, 1, 2, 3), (1, 2, 3, 0)):
        one = plans[order[0]] | plans[order[1]] | plans[order[2]] | plans[order[3]]
        torch.testing.assert_close(ss.ops.steer(h, one), ss.ops.steer(h, joined))


def test_what_cannot_be_joined():
    plan = random_sae().plan(EDIT)
    for edit in (Edit.ablate([3]), Edit.set({7: 1}), Edit.add({7: 1})):
        with pytest.raises(ValueError, match="is edited by both plans"):
            plan | random_sae().plan(edit)
    with pytest.raises(ValueError, match="plans differ in scale_rule.*cannot be joined"):
        plan | gap_fill(Edit.set({1: 1}), OutputScale.NORM)
    with pytest.raises(ValueError, match="plans differ in preserve_norm"):
        plan | random_sae().plan(Edit.set({1: 1}), preserve_norm=True)
    with pytest.raises(ValueError, match="plans differ in input_norm"):
        plan | random_sae(normalize="layer_norm").plan(Edit.set({1: 1}))
    with pytest.raises(ValueError, match="plans differ in sae_digest"):
        plan | random_sae(seed=1).plan(Edit.set({1: 1}))
    with pytest.raises(TypeError):
        plan | Edit.set({1: 1})


def gap_fill(edit, rule):
    made = random_sae().plan(edit)
    return SteeringPlan(
        encoder=made.encoder, decoder=made.decoder, rows=made.rows, features=made.features,
        input_norm=InputNorm.NONE, scale_rule=rule, sae_digest=made.sae_digest,
    )  # fmt: skip


def test_to_another_dtype():
    plan = random_sae().plan(EDIT)
    half = plan.to(dtype=torch.bfloat16)
    assert half.encoder.dtype == half.decoder.dtype == torch.bfloat16
    assert half.rows.dtype == half.delta_bias.dtype == torch.float32 and torch.equal(half.rows, plan.rows)
    assert torch.equal(half.encoder, plan.encoder.bfloat16())
    double = plan.to(dtype=torch.float64)
    assert {getattr(double, name).dtype for name in ("encoder", "decoder", "rows", "delta_bias")} == {torch.float64}
    assert double.features.dtype == torch.int64 and double.constant_features.dtype == torch.int64
    assert plan.encoder.dtype == torch.float32  # the plan itself is not changed
    for dtype in (torch.float16, torch.int32):
        with pytest.raises(TypeError, match="fp32, fp64 or bf16"):
            plan.to(dtype=dtype)


def test_a_plan_says_what_it_is():
    assert repr(PLANS["topk"]()) == (
        "SteeringPlan(topk(4), M=2, D=6, constant part, blocks.3.hook_resid_post of a model)"
    )
