"""ops.encode and ops.decode as a user calls them, on whatever backend serves them here."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sae import D, F, every_activation, hidden, make_sae

import sparsesteer as ss
from sparsesteer import SparseCodes, ops

NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
ACTIVATIONS = every_activation()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_active_features_of_every_token(kind, normalize):
    sae, h = make_sae(ACTIVATIONS[kind], normalize=normalize), hidden(6)
    codes, dense = ops.encode(h, sae), sae.encode(h.double())
    assert codes.counts.dtype == codes.indices.dtype == torch.int32
    assert torch.equal(codes.counts, (dense != 0).sum(-1, dtype=torch.int32))
    assert codes.values.shape == (6, int(codes.counts.max()))
    torch.testing.assert_close(codes.to_dense(F).double(), dense, rtol=1e-5, atol=1e-5)
    shown = torch.where(codes.indices >= 0, codes.values, torch.full_like(codes.values, -torch.inf))
    assert (shown.diff(dim=-1) <= 0)[codes.indices[:, 1:] >= 0].all()
    assert (codes.values[codes.indices < 0] == 0).all()


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("k", [1, 5, 7, 60, F, F + 9])
def test_k_columns(kind, k):
    sae, h = make_sae(ACTIVATIONS[kind]), hidden(6)
    all_codes, codes = ops.encode(h, sae), ops.encode(h, sae, k)
    assert codes.values.shape == codes.indices.shape == (6, k)
    assert torch.equal(codes.counts, all_codes.counts)  # above k where a token has more: never silent
    width = min(k, all_codes.values.shape[1])
    assert torch.equal(codes.indices[:, :width], all_codes.indices[:, :width])
    assert torch.equal(codes.values[:, :width], all_codes.values[:, :width])
    assert (codes.indices[:, width:] == -1).all() and (codes.values[:, width:] == 0).all()


def test_the_lower_index_wins_ties():
    sae = make_sae(ss.TopK(9), whole=True)
    h = torch.randint(-2, 3, (40, D), generator=torch.Generator().manual_seed(3)).float()
    codes = ops.encode(h, sae)
    z = h.double() @ sae.W_enc.double() + sae.b_enc - sae.b_dec.double() @ sae.W_enc.double()
    order = z.sort(dim=-1, descending=True, stable=True).indices[:, :9]
    assert (z.gather(1, order).diff(dim=-1) == 0).float().mean() > 0.2
    assert torch.equal(codes.indices.long(), order)
    assert torch.equal(codes.values.double(), z.gather(1, order))


def test_more_active_features_than_the_first_try_has_room_for():
    generator = torch.Generator().manual_seed(0)
    sae = ss.SAE(
        W_enc=torch.randn(4, 9000, generator=generator),
        W_dec=torch.randn(9000, 4, generator=generator),
        activation=ss.Identity(),
    )
    codes = ops.encode(torch.randn(2, 4, generator=generator), sae)
    assert codes.values.shape == (2, 9000) and (codes.counts == 9000).all()
    assert (codes.indices.sort(-1).values == torch.arange(9000)).all()


@pytest.mark.parametrize("shape", [(D,), (1, D), (2, 3, D), (0, D), (2, 0, D)], ids=str)
def test_any_leading_shape(shape):
    sae, h = make_sae(ss.TopK(7)), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes = ops.encode(h, sae, 7)
    assert codes.values.shape == (*shape[:-1], 7) and codes.counts.shape == shape[:-1]
    flat = ops.encode(h.reshape(-1, D), sae, 7)
    assert torch.equal(codes.indices.reshape(-1, 7), flat.indices)
    assert ops.decode(codes, sae).shape == shape
    assert ops.encode(h, sae).counts.shape == shape[:-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype):
    sae, h = make_sae(ss.TopK(7)), hidden(6, dtype)
    codes = ops.encode(h, sae)
    assert codes.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    want = ops.encode(h.double(), sae)
    torch.testing.assert_close(codes.values.double(), want.values, rtol=1e-5, atol=1e-5)


def test_weights_in_bf16():
    sae, h = make_sae(ss.TopK(7), dtype=torch.bfloat16), hidden(6)
    assert sae.whole_encoder()[0].dtype == sae.whole_decoder()[0].dtype == torch.bfloat16
    codes, want = ops.encode(h, sae), ops.encode(h.double(), sae)
    torch.testing.assert_close(codes.values.double(), want.values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ops.decode(codes, sae).double(), ops.decode(want, sae), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("kind", ["topk", "jumprelu", "identity"])
def test_a_screen_changes_nothing_but_the_bytes_read(kind, n):
    sae = make_sae(ACTIVATIONS[kind])
    screened, h = sae.with_screen(), hidden(n)
    for k in (None, 3):
        for got, want in zip(ops.encode(h, screened, k), ops.encode(h, sae, k), strict=True):
            assert torch.equal(got, want)
    assert sae.screen is None and screened.W_enc.data_ptr() == sae.W_enc.data_ptr()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_decode_is_dense_decode(kind, normalize):
    sae, h = make_sae(ACTIVATIONS[kind], normalize=normalize), hidden(6)
    like = None if normalize == "none" else h
    got = sae.decode(sae.encode_sparse(h), like)
    want = sae.decode(sae.encode(h.double()), None if like is None else h.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_padding_and_repeated_features():
    sae = make_sae()
    values = torch.tensor([[2.0, 9.0, 3.0], [0.0, 0.0, 0.0]])
    indices = torch.tensor([[5, -1, 5], [-1, -1, -1]], dtype=torch.int32)
    out = ops.decode(SparseCodes(values, indices, torch.tensor([2, 0], dtype=torch.int32)), sae)
    torch.testing.assert_close(out[0], 5 * sae.W_dec[5] + sae.b_dec)
    assert torch.equal(out[1], sae.b_dec)


def test_gradients():
    sae, h = make_sae(ss.TopK(7)), hidden(4).requires_grad_()
    ops.decode(ops.encode(h, sae, 7), sae).square().sum().backward()
    twin = h.detach().double().requires_grad_()
    sae.decode(sae.encode(twin)).square().sum().backward()
    torch.testing.assert_close(h.grad.double(), twin.grad, rtol=1e-4, atol=1e-4)


def test_compiled_with_k():
    sae, h = make_sae(ss.TopK(7)), hidden(4)
    run = torch.compile(lambda t: ops.decode(ops.encode(t, sae, 7), sae), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(h), ops.decode(ops.encode(h, sae, 7), sae))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 9), k=st.integers(1, 12))
def test_permuting_tokens_permutes_codes(seed, n, k):
    sae, h = make_sae(ss.TopK(9), whole=True), (4 * hidden(n, seed=seed)).round()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    codes = ops.encode(h, sae, k)
    for got, whole in zip(ops.encode(h[order], sae, k), codes, strict=True):
        assert torch.equal(got, whole[order])
    out = ops.decode(codes, sae)
    assert torch.equal(ops.decode(SparseCodes(*(part[order] for part in codes)), sae), out[order])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 30))
def test_fewer_columns_are_the_first_of_more(seed, k):
    sae, h = make_sae(), hidden(3, seed=seed)
    more, fewer = ops.encode(h, sae, k + 4), ops.encode(h, sae, k)
    assert torch.equal(fewer.indices, more.indices[:, :k]) and torch.equal(fewer.counts, more.counts)


BAD = [
    (lambda h, s: ops.encode(h.long(), s), TypeError, "encode: h should be fp32, fp64, fp16 or bf16, got torch.int64"),
    (
        lambda h, s: ops.encode(h[:, :9], s),
        ValueError,
        r"encode: h should have shape \[\.\.\., 48\], the width of the SAE",
    ),
    (lambda h, s: ops.encode(h, s, 0), ValueError, "k should be a positive integer or None, got 0"),
    (lambda h, s: ops.encode(h, s, 2.0), ValueError, "k should be a positive integer or None, got 2.0"),
    (lambda h, s: ops.encode(h.to("meta"), s), ValueError, r"the SAE is on cpu, h on meta; use sae.to\('meta'\)"),
    (lambda h, s: ops.encode(h, s, backend="c"), ValueError, "unknown backend 'c'"),
    (lambda h, s: ops.decode(broken(s, values=h.half()), s), TypeError, "values should be fp32 or fp64"),
    (lambda h, s: ops.decode(broken(s, indices=torch.zeros(5, 7)), s), TypeError, "indices int32, got"),
    (
        lambda h, s: ops.decode(broken(s, values=torch.zeros(5, 6)), s),
        ValueError,
        r"one shape \[\.\.\., K\], got \[5, 6\] and \[5, 7\]",
    ),
]


def broken(sae, **parts):
    return ops.encode(hidden(5), sae, 7)._replace(**parts)


@pytest.mark.parametrize("call, error, message", BAD, ids=[b[2][:40] for b in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(hidden(5), make_sae(ss.TopK(7)))


def test_an_index_that_the_sae_does_not_have():
    sae = make_sae()
    codes = SparseCodes(torch.ones(1, 2), torch.tensor([[3, F]], dtype=torch.int32), torch.tensor([2]).int())
    with pytest.raises((IndexError, RuntimeError), match=rf"{F}"):
        ops.decode(codes, sae)


def test_a_normalising_sae_needs_what_was_encoded():
    sae = make_sae(normalize="layer_norm")
    with pytest.raises(ValueError, match=r"needs the encoded tensor: decode\(f, like=h\)"):
        sae.decode(sae.encode_sparse(hidden(2)))


def test_width_must_be_known_to_compiled_code():
    sae = make_sae()
    with pytest.raises(Exception, match="give k"):
        torch.compile(lambda t: ops.encode(t, sae).values, fullgraph=True, backend="aot_eager")(hidden(2))
