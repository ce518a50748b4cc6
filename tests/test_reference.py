"""The reference against tables worked out by hand, one a rule; and the bits of what is not edited."""

import math

import pytest
import torch
from by_loops import relu_rows

import sparsesteer as ss
from sparsesteer import SAE, Edit, reference
from sparsesteer._layout import OutputScale

# rule, edit of feature 0, activations before -> after
RULES = [
    ("set", Edit.set({0: 5}), [0, 2, 7], [5, 5, 5]),
    ("set when active", Edit.set({0: 5}, when_active=True), [0, 2, 7], [0, 5, 5]),
    ("add", Edit.add({0: 3}), [0, 2, 7], [3, 5, 10]),
    ("add when active", Edit.add({0: 3}, when_active=True), [0, 2, 7], [0, 5, 10]),
    ("scale", Edit.scale({0: 2}), [0, 2, 7], [0, 4, 14]),
    ("scale by 0", Edit.scale({0: 0}), [0, 2, 7], [0, 0, 0]),
    ("ablate", Edit.ablate([0]), [0, 2, 7], [0, 0, 0]),
    ("cap", Edit.cap({0: 4}), [0, 2, 7], [0, 2, 4]),
    ("floor", Edit.floor({0: 4}), [0, 2, 7], [4, 4, 7]),
    ("floor when active", Edit.floor({0: 4}, when_active=True), [0, 2, 7], [0, 4, 7]),
    ("SPARE remove, a zC = 3", Edit.hinge({0: (0, -1, 1, 3)}), [0, 2, 7], [0, 0, 4]),
    ("SPARE add, a zM = 3", Edit.hinge({0: (3, -1, 1, 3)}), [0, 2, 7], [3, 3, 7]),
    ("MI amplification, a = 2", Edit.hinge({0: (0, 2, 0, 0)}), [0, 2, 7], [0, 6, 21]),
]


@pytest.mark.parametrize("edit, before, after", [pytest.param(*r[1:], id=r[0]) for r in RULES])
def test_rules_of_one_feature(edit, before, after):
    sae = SAE(W_enc=torch.tensor([[1.0], [0.0]]), W_dec=torch.tensor([[0.0, 1.0]]), activation=ss.ReLU())
    h = torch.tensor([[f, 100.0] for f in before])
    out = ss.ops.steer(h, sae.plan(edit), backend="reference")
    assert out.tolist() == [[f, 100.0 + new - f] for f, new in zip(before, after, strict=True)]
    # a negative pre-activation is an activation of 0
    silent = ss.ops.steer(torch.tensor([[-3.0, 100.0]]), sae.plan(edit), backend="reference")
    assert silent.tolist() == [[-3.0, 100.0 + after[0]]]


# x = (z0, z1, w0, w1); the decoder rows are (0, 0, 1, 0) and (0, 0, 0, 2)
PAIRS = [
    ("MI calibration, b = 4", Edit.hinge({0: (2, -1, 0, 0), 1: (2, -1, 0, 0)}), [1, 3, 10, 20], [1, 3, 11, 18]),
    ("AlignSAE swap, alpha = 5", Edit.ablate([0]) | Edit.set({1: 5}), [2, 1, 10, 20], [2, 1, 8, 28]),
    ("simultaneous", Edit.add({0: 1}) | Edit.scale({1: 3}), [2, 1, 10, 20], [2, 1, 11, 24]),
]


@pytest.mark.parametrize("edit, x, want", [pytest.param(*p[1:], id=p[0]) for p in PAIRS])
def test_rules_of_two_features(edit, x, want):
    W_enc = torch.eye(4)[:, :2]
    W_dec = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 2]])
    sae = SAE(W_enc=W_enc, W_dec=W_dec, activation=ss.ReLU())
    out = ss.ops.steer(torch.tensor([x], dtype=torch.float32), sae.plan(edit), backend="reference")
    assert out.tolist() == [want]


def steer_literal(x, into, encoder, decoder, rows, norm=0, rule=0, gap=0.0, preserve_norm=False):
    x, into, encoder, decoder = (torch.tensor(t, dtype=torch.float64) for t in (x, into, encoder, decoder))
    return reference.steer(x, into, None, encoder, decoder, rows, None, None, 1.0, norm, rule, gap, preserve_norm)


GAP_FILL = [
    ("d = (3, 1), r = 1", [1, 3], [10, 20], False, [13, 21]),
    ("d = (2, 0), r = 2", [2, 4], [10, 20], False, [14, 20]),
    ("nothing missing", [5, 6], [10, 20], False, [10, 20]),
    ("length 3 kept", [4, 0], [3, 0], True, [1.8, 2.4]),
    ("length kept by two", [3, 1], [5, 5], True, [0.6 * 50**0.5, 0.8 * 50**0.5]),
]


@pytest.mark.parametrize("f, w, preserve_norm, want", [pytest.param(*g[1:], id=g[0]) for g in GAP_FILL])
def test_gap_fill(f, w, preserve_norm, want):
    rows = relu_rows(2, C0=4, C1=-1, C2=1, KNOT=4)
    out = steer_literal([f], [w], [[1, 0], [0, 1]], [[1, 0], [0, 1]], rows, 0, OutputScale.GAP_FILL, 4.0, preserve_norm)
    torch.testing.assert_close(out, torch.tensor([want], dtype=torch.float64), rtol=1e-15, atol=0)


SCALES = [
    (OutputScale.ONE, [0, 2, 4], 1),
    (OutputScale.STD, [0, 2, 4], 2),
    (OutputScale.STD, [5, 5, 5], 0),
    (OutputScale.RMS, [1, 1, 1], 1),
    (OutputScale.RMS, [6, 6, 6], 6),
    (OutputScale.NORM, [2, 1, 2], 3),
    (OutputScale.NORM, [0, 0, 0], 0),
    (OutputScale.GAP_FILL, [0, 2, 4], 2.5),  # 10 over a sum of 4
]


@pytest.mark.parametrize("rule, x, r", SCALES)
def test_output_scales(rule, x, r):
    rows = relu_rows(1, THRESHOLD=math.inf, C0=4)  # never fires, set to 4
    out = steer_literal([x], [[100]], [[1, 0, 0]], [[1]], rows, rule=rule, gap=10.0)
    torch.testing.assert_close(out.item(), 100.0 + 4 * r, rtol=1e-15, atol=0)


NORM_TABLE = [
    # (0, 2, 4) has mean 2 and std 2; the third feature sees 2 / 2.00001, set to 3, times std
    ("layer_norm", [0, 2, 4], 2 * (3 - 2 / 2.00001)),
    ("none", [0, 2, 4], 3 - 4),
    # ||(2, 1, 2)|| = 3, so the third feature sees 2 sqrt(3) / 3; set to 3, times 3 / sqrt(3)
    ("constant_norm_rescale", [2, 1, 2], (3 - 2 / math.sqrt(3)) * math.sqrt(3)),
]


@pytest.mark.parametrize("normalize, x, change", NORM_TABLE)
def test_input_norms(normalize, x, change):
    W_enc = torch.tensor([[0.0], [0], [1]], dtype=torch.float64)
    sae = SAE(W_enc=W_enc, W_dec=W_enc.T, activation=ss.ReLU(), normalize=normalize)
    h = torch.tensor([x], dtype=torch.float64)
    want = torch.tensor([[x[0], x[1], x[2] + change]], dtype=torch.float64)
    torch.testing.assert_close(ss.ops.steer(h, sae.plan(Edit.set({0: 3})), backend="reference"), want)


def test_a_token_of_norm_0_has_an_edit_of_norm_0():
    sae = SAE(W_enc=torch.ones(2, 1), W_dec=torch.ones(1, 2), activation=ss.ReLU(), normalize="constant_norm_rescale")
    assert ss.ops.steer(torch.zeros(1, 2), sae.plan(Edit.set({0: 3})), backend="reference").tolist() == [[0, 0]]


ACTIVATIONS = [
    (ss.ReLU(), [-1, 0, 2, 3], [0, 0, 2, 3]),
    (ss.Identity(), [-1, 0, 2, 3], [-1, 0, 2, 3]),
    (ss.JumpReLU(torch.full((4,), 2.0)), [-1, 1, 2, 3], [0, 0, 0, 3]),
    (ss.JumpReLU(torch.tensor(2.0)), [-1, 1, 2, 3], [0, 0, 0, 3]),
    (ss.JumpReLU(2.0), [-1, 1, 2, 3], [0, 0, 0, 3]),
    (ss.JumpReLU(-2.0), [-1, 1, 2, 3], [0, 1, 2, 3]),
    (ss.TopK(2), [-1, 1, 2, 3], [0, 0, 2, 3]),
    (ss.TopK(3), [3, 3, 3, 3], [3, 3, 3, 0]),
    (ss.TopK(4), [-1, -2, 2, 3], [0, 0, 2, 3]),
    (ss.Slots(2, rest=ss.ReLU()), [-1, 1, -2, 3], [0, 1, -2, 3]),
    (ss.Slots(0, rest=ss.ReLU()), [-1, 1, -2, 3], [0, 1, 0, 3]),
    (ss.Slots(1, rest=ss.JumpReLU(1.0)), [2, 1, -2, -3], [2, 0, 0, -3]),
    (  # open from z = 1 on, doubled, plus 1 or minus 5
        ss.Gated(b_gate=-torch.ones(4), b_mag=torch.tensor([1.0, 1, 1, -5]), r_mag=torch.full((4,), math.log(2))),
        [1, 2, -3, 2],
        [0, 5, 0, 0],
    ),
]


@pytest.mark.parametrize("activation, z, f", ACTIVATIONS)
def test_activations(activation, z, f):
    sae = SAE(W_enc=torch.eye(4), W_dec=torch.eye(4), activation=activation)
    h, want = torch.tensor([z], dtype=torch.float32), torch.tensor([f], dtype=torch.float32)
    assert torch.equal(sae.encode(h), want)
    # the same activations in the rows of a plan: ablating all of them takes f away
    out = ss.ops.steer(h, sae.plan(Edit.ablate(range(4))), backend="reference")
    assert torch.equal(out, h - want)


def test_encode_by_hand():
    h = torch.tensor([[0.0, 5, 2, 5], [0, 0, 0, 0], [1, 2, 3, 4]])
    rows = relu_rows(4).float()
    values, indices, counts = reference.encode(h, torch.eye(4), rows, 0, 3, 0)
    assert values.tolist() == [[5, 5, 2], [0, 0, 0], [4, 3, 2]]
    assert indices.tolist() == [[1, 3, 2], [-1, -1, -1], [3, 2, 1]]
    assert counts.tolist() == [3, 0, 4]  # the last token says that one feature did not fit


def test_decode_by_hand():
    decoder, bias = torch.tensor([[1.0, 0], [0, 10], [100, 100]]), torch.tensor([0.5, -0.5])
    values, indices = torch.tensor([[2.0, 3], [4, 9]]), torch.tensor([[2, 0], [1, -1]], dtype=torch.int32)
    assert reference.decode(values, indices, decoder, bias).tolist() == [[203.5, 199.5], [0.5, 39.5]]


def test_topk_ties_go_to_the_lower_index():
    sae = SAE(W_enc=torch.eye(6), W_dec=torch.eye(6), activation=ss.TopK(3))
    h = torch.tensor([[5.0, 3, 3, 3, 3, 1], [3, 3, 3, 3, 3, 3], [1, 3, 1, 3, 1, 3]])
    active = [{0, 1, 2}, {0, 1, 2}, {1, 3, 5}]
    for feature in range(6):
        out = ss.ops.steer(h, sae.plan(Edit.ablate([feature])))
        for i in range(3):
            want = h[i].clone()
            want[feature] -= h[i, feature] if feature in active[i] else 0
            assert torch.equal(out[i], want)


def test_relu_in_place_of_topk_sees_every_positive_feature():
    sae = SAE(W_enc=torch.eye(3), W_dec=torch.eye(3), activation=ss.TopK(1))
    h = torch.tensor([[5.0, 3, -1]])
    edit = Edit.ablate([0, 1, 2])
    assert ss.ops.steer(h, sae.plan(edit)).tolist() == [[0, 3, -1]]
    assert ss.ops.steer(h, sae.plan(edit, activation=ss.ReLU())).tolist() == [[0, 0, -1]]
    whole = sae.plan(Edit.ablate([0]), activation=ss.ReLU(), reconstruct=True)
    assert ss.ops.steer(h, whole).tolist() == [[0, 3, 0]]


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("preserve_norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_untouched_tokens_keep_their_bits(dtype, preserve_norm, normalize):
    sae = SAE(W_enc=torch.tensor([[1.0], [-1], [0]]), W_dec=torch.ones(1, 3), activation=ss.ReLU(), normalize=normalize)
    plan = sae.plan(Edit.scale({0: 3}), preserve_norm=preserve_norm)
    h = torch.tensor([[-1.0, 1, -0.0], [-3, 0.3, 0.1], [2, 1, -0.0], [1, -1, 7]], dtype=dtype)
    out = ss.ops.steer(h, plan, backend="reference")
    assert torch.equal(bits(out[:2]), bits(h[:2]))
    assert (bits(out[2:]) != bits(h[2:])).any(-1).all()


@pytest.mark.parametrize("edit", [Edit.set({0: 3}), Edit.add({0: 3})], ids=["encoded", "constant"])
@pytest.mark.parametrize("preserve_norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tokens_of_strength_0_keep_their_bits(dtype, preserve_norm, edit):
    sae = SAE(W_enc=torch.ones(3, 1), W_dec=torch.tensor([[1.0, 2, 0]]), activation=ss.ReLU())
    plan = sae.plan(edit, preserve_norm=preserve_norm)
    h = torch.tensor([[-0.0, 1, -0.0], [0.1, 0.3, -0.0], [5, -0.0, 0.7]], dtype=dtype)
    out = ss.ops.steer(h, plan, torch.tensor([0.0, 1, -0.0]), backend="reference")
    assert torch.equal(bits(out[::2]), bits(h[::2]))
    assert not torch.equal(out[1], h[1])
    assert torch.equal(bits(ss.ops.steer(h, plan, 0.0, backend="reference")), bits(h))


def test_preserve_norm_keeps_the_length_and_survives_a_vanished_token():
    sae = SAE(W_enc=torch.eye(3), W_dec=torch.eye(3), activation=ss.ReLU())
    plan = sae.plan(Edit.set({0: 4}), preserve_norm=True)
    out = ss.ops.steer(torch.tensor([[0.0, 3, 0]]), plan, backend="reference")
    torch.testing.assert_close(out, torch.tensor([[2.4, 1.8, 0]]))
    gone = ss.ops.steer(
        torch.tensor([[5.0, 0, 0]]), sae.plan(Edit.ablate([0]), preserve_norm=True), backend="reference"
    )
    assert gone.tolist() == [[0, 0, 0]]
