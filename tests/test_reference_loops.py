"""The reference against loops over plain Python numbers, in fp64."""

import itertools

import by_loops
import pytest
import torch
from by_loops import relu_rows

from sparsesteer import reference
from sparsesteer._layout import InputNorm, OutputScale

TOLERANCE = dict(rtol=1e-12, atol=1e-12)  # sums in another order


def loop_case(seed, norm, n=7, d=5, d_out=3, m=4):
    """Random arguments of ``steer`` without the scalars, half of the rows firing."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    encoder, rows = rand(m, d), rand(m, 10)
    rows[:, by_loops.THRESHOLD] -= 1
    rows[:, by_loops.GATE] = (rows[:, by_loops.GATE] > 0).double()
    if norm == InputNorm.LAYER_NORM:
        encoder = encoder - encoder.mean(-1, keepdim=True)
    return dict(
        x=rand(n, d), into=rand(n, d_out), residual=rand(n, d), encoder=encoder, decoder=rand(m, d_out), rows=rows,
        delta_bias=rand(d_out), token_strength=rand(n),
    )  # fmt: skip


ALL_RULES = list(itertools.product(InputNorm, OutputScale, (False, True)))


@pytest.mark.parametrize("norm, rule, preserve_norm", ALL_RULES)
def test_steer_is_the_loop(norm, rule, preserve_norm):
    c = loop_case(3, norm)
    out = reference.steer(*c.values(), 0.7, norm, rule, 1.3, preserve_norm)
    want = [
        by_loops.steer(
            *t, c["encoder"].tolist(), c["decoder"].tolist(), c["rows"].tolist(), c["delta_bias"].tolist(), 0.7 * s,
            norm, rule, 1.3, preserve_norm,
        )
        for *t, s in zip(
            (c["x"] + c["residual"]).tolist(), c["into"].tolist(), c["token_strength"].tolist(), strict=True
        )
    ]  # fmt: skip
    torch.testing.assert_close(out, torch.tensor(want, dtype=torch.float64), **TOLERANCE)


@pytest.mark.parametrize("k", [1, 3, 6, 11])
@pytest.mark.parametrize("norm, rule", [(0, 0), (1, 1), (2, 2), (0, 3), (0, 4)])
def test_steer_topk_is_the_loop(norm, rule, k):
    c = loop_case(5, norm, m=11)
    features, rows = torch.tensor([7, 0, 10, 2]), relu_rows(4)
    rows[:, by_loops.C0 :] = c["rows"][:4, by_loops.C0 :]
    biases = c["rows"][:, by_loops.BIAS].contiguous()
    tail = (norm, rule, 1.3, False)
    out = reference.steer_topk(
        c["x"], c["into"], None, c["encoder"], biases, features, k, c["decoder"][:4], rows, None, None, 0.7, *tail
    )
    want = [
        by_loops.steer_topk(
            x, w, c["encoder"].tolist(), biases.tolist(), features.tolist(), k, c["decoder"][:4].tolist(),
            rows.tolist(), [0.0] * 3, 0.7, *tail,
        )
        for x, w in zip(c["x"].tolist(), c["into"].tolist(), strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(out, torch.tensor(want, dtype=torch.float64), **TOLERANCE)


@pytest.mark.parametrize("norm", InputNorm)
@pytest.mark.parametrize("k", [None, 0, 1, 3, 6, 11], ids=lambda k: "rows" if k is None else f"k={k}")
def test_activations_are_the_loop(norm, k):
    c = loop_case(6, norm, m=11)
    rows = relu_rows(11, BIAS=c["rows"][:, by_loops.BIAS]) if k else c["rows"]
    features = torch.tensor([7, 0, 10, 2])
    tokens, encoder = (c["x"] + c["residual"]).tolist(), c["encoder"].tolist()
    want = torch.tensor([by_loops.codes(x, encoder, rows.tolist(), k or 0, norm) for x in tokens], dtype=torch.float64)
    if k is None:
        out = reference.activations(c["x"], c["residual"], c["encoder"], rows, norm)
    else:
        want, bias = want[:, features], rows[:, by_loops.BIAS]
        rows = rows[features]
        out = reference.activations_topk(c["x"], c["residual"], c["encoder"], bias, features, k, rows, norm)
    assert (want == 0).any() and (want != 0).any()
    torch.testing.assert_close(out, want, **TOLERANCE)


@pytest.mark.parametrize("norm", InputNorm)
@pytest.mark.parametrize("k, width", [(0, 4), (0, 11), (0, 14), (3, 3), (3, 5)])
def test_encode_is_the_loop(norm, k, width):
    c = loop_case(7, norm, m=11)
    rows = relu_rows(11, BIAS=c["rows"][:, 0]) if k else c["rows"]
    values, indices, counts = reference.encode(c["x"], c["encoder"], rows, k, width, norm)
    want = [by_loops.encode(x, c["encoder"].tolist(), rows.tolist(), k, width, norm) for x in c["x"].tolist()]
    assert indices.dtype == counts.dtype == torch.int32
    assert indices.tolist() == [w[1] for w in want] and counts.tolist() == [w[2] for w in want]
    torch.testing.assert_close(values, torch.tensor([w[0] for w in want], dtype=torch.float64), **TOLERANCE)


def test_decode_is_the_loop():
    c = loop_case(8, 0, m=6)
    values, indices = c["x"], torch.tensor([[0, -1, 5, 5, 3]] * 7, dtype=torch.int32)
    bias = c["delta_bias"]
    pairs = zip(values.tolist(), indices.tolist(), strict=True)
    want = [by_loops.decode(v, i, c["decoder"].tolist(), bias.tolist()) for v, i in pairs]
    out = reference.decode(values, indices, c["decoder"], bias)
    torch.testing.assert_close(out, torch.tensor(want, dtype=torch.float64), **TOLERANCE)


@pytest.mark.parametrize("norm, k, preserve_norm", list(itertools.product(InputNorm, (0, 3), (False, True))))
def test_steer_reconstruct_is_the_loop(norm, k, preserve_norm):
    c = loop_case(9, norm, d_out=5, m=11)
    if k:
        c["rows"][:, : by_loops.C0] = relu_rows(11)[:, : by_loops.C0]
    features = torch.tensor([0, 4, 7, 10])
    out = reference.steer_reconstruct(
        c["x"], c["into"], c["residual"], c["encoder"], c["rows"], k, features, c["rows"][:4], c["decoder"],
        c["delta_bias"], c["token_strength"], 0.7, norm, preserve_norm,
    )  # fmt: skip
    whole = c["encoder"].tolist(), c["rows"].tolist(), k, features.tolist(), c["rows"][:4].tolist()
    tables = *whole, c["decoder"].tolist(), c["delta_bias"].tolist()
    want = [
        by_loops.steer_reconstruct(*t, *tables, 0.7 * s, norm, preserve_norm)
        for *t, s in zip(
            (c["x"] + c["residual"]).tolist(), c["into"].tolist(), c["token_strength"].tolist(), strict=True
        )
    ]
    torch.testing.assert_close(out, torch.tensor(want, dtype=torch.float64), **TOLERANCE)


def test_steer_slots_gives_each_token_its_own_plan():
    c = loop_case(11, 0, m=6)
    slot = torch.tensor([1, -1, 0, 2, 1, 0, -1], dtype=torch.int32)
    slots = torch.tensor([[0, 2, 0], [2, 3, 1], [0, 0, 1]], dtype=torch.int32)  # slot 2 has a constant part only
    entry_row = torch.tensor([4, 0, 0, 1, 5], dtype=torch.int32)  # row 0 serves two slots
    rows, slot_bias = c["rows"][:5], torch.stack([torch.zeros(3).double(), c["delta_bias"], -c["delta_bias"]])
    out = reference.steer_slots(
        c["x"], c["into"], None, slot, slots, c["encoder"], c["decoder"], entry_row, rows, slot_bias,
        c["token_strength"], 0.7, 0, 0, 0.0, False,
    )  # fmt: skip
    want = []
    for i, s in enumerate(slot.tolist()):
        if s < 0:
            want.append(c["into"][i].tolist())
            continue
        entries = range(slots[s, 0], slots[s, 0] + slots[s, 1])
        shared = [int(entry_row[e]) for e in entries]
        want.append(
            by_loops.steer(
                c["x"][i].tolist(), c["into"][i].tolist(), [c["encoder"][r].tolist() for r in shared],
                [c["decoder"][r].tolist() for r in shared], [rows[e].tolist() for e in entries], slot_bias[s].tolist(),
                0.7 * float(c["token_strength"][i]), 0, 0, 0.0, False,
            )
        )  # fmt: skip
    torch.testing.assert_close(out, torch.tensor(want, dtype=torch.float64), **TOLERANCE)
    assert torch.equal(out[slot < 0], c["into"][slot < 0])
