"""TopK plans through ops.steer: an edited feature counts only where it is among a token's k first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sae import D, F, hidden, make_sae

import sparsesteer as ss
from sparsesteer import SAE, Edit, ops

K = 10
RULES = {
    "set": (Edit.set, 2.0),
    "scale": (Edit.scale, 3.0),
    "cap": (Edit.cap, 0.1),
    "floor": (Edit.floor, 2.5),
}
EDITS = {"set": lambda f: 2.0 + 0 * f, "scale": lambda f: 3 * f, "cap": lambda f: f.clamp(max=0.1)}
EDITS["floor"] = lambda f: f.clamp(min=2.5)


def by_all_codes(sae, h, change):
    """Encode everything in fp64, change the codes, add what the decoder makes of the difference."""
    f = sae.encode(h.double())
    return h.double() + (change(f.clone()) - f) @ sae.W_dec.double()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rank", [0, 4, K - 2, K - 1, K, K + 1, 3 * K, F - 1])
def test_every_rank(rank, rule):
    sae, h = make_sae(ss.TopK(K)), hidden(1)
    z = make_sae(ss.Identity()).encode(h.double())[0]
    feature = int(z.sort(descending=True).indices[rank])
    make, value = RULES[rule]

    def change(f):
        f[:, feature] = EDITS[rule](f[:, feature])
        return f

    assert (sae.encode(h.double())[0, feature] > 0) == (rank < K)
    out = ops.steer(h, sae.plan(make({feature: value})))
    torch.testing.assert_close(out.double(), by_all_codes(sae, h, change), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, F - 1, F, F + 5])
@pytest.mark.parametrize("n", [0, 1, 7, 33])
def test_every_k(k, n):
    sae, h = make_sae(ss.TopK(k)), hidden(n)
    edited = list(range(0, F, 3))

    def change(f):
        f[:, edited] *= 3
        return f

    out = ops.steer(h, sae.plan(Edit.scale(dict.fromkeys(edited, 3.0))))
    torch.testing.assert_close(out.double(), by_all_codes(sae, h, change), rtol=1e-4, atol=1e-5)


def test_equal_features_are_ranked_by_index():
    """All features alike: the first k are active, whichever of them is edited."""
    row = torch.randn(D, 1, generator=torch.Generator().manual_seed(0))
    decoder = torch.randn(12, D, generator=torch.Generator().manual_seed(1))
    sae = SAE(W_enc=row.expand(D, 12).clone(), W_dec=decoder, activation=ss.TopK(5))
    h = torch.stack([row[:, 0], -row[:, 0]])
    for feature in range(12):
        out = ops.steer(h, sae.plan(Edit.scale({feature: 2.0})))
        assert torch.equal(out[0], h[0]) == (feature >= 5), feature
        assert torch.equal(out[1], h[1])


def test_ties_in_whole_numbers():
    sae = make_sae(ss.TopK(9), whole=True)
    h = (2 * hidden(20)).round()
    edited = list(range(0, F, 7))

    def change(f):
        f[:, edited] = 0
        return f

    assert (sae.encode(h.double()).sort(-1, descending=True).values[:, 8:10].diff(dim=-1) < 1).any()
    out = ops.steer(h, sae.plan(Edit.ablate(edited)))
    assert torch.equal(out.double(), by_all_codes(sae, h, change))  # sums of whole numbers are exact


def test_tokens_without_an_active_edited_feature_keep_their_bits():
    sae, h = make_sae(ss.TopK(K)), hidden(30)
    active = sae.encode(h.double())[:, 17] > 0
    assert 0 < active.sum() < 15
    out = ops.steer(h, sae.plan(Edit.scale({17: 2.0})))
    assert torch.equal((out == h).all(-1), ~active)


def test_an_edit_that_says_nothing_about_activity_reaches_every_token():
    sae, h = make_sae(ss.TopK(K)), hidden(8)
    out = ops.steer(h, sae.plan(Edit.set({17: 2.0}) | Edit.add({5: 1.0})))

    def change(f):
        f[:, 17] = 2.0
        f[:, 5] += 1.0
        return f

    torch.testing.assert_close(out.double(), by_all_codes(sae, h, change), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("rescale", [False, True])
def test_norms(normalize, rescale):
    sae = make_sae(ss.TopK(K), normalize=normalize, rescale_acts_by_decoder_norm=rescale)
    h, edited = hidden(6), list(range(0, F, 5))
    f = sae.encode(h.double())
    changed = f.clone()
    changed[:, edited] *= 2
    want = h.double() + sae.decode(changed, like=h.double()) - sae.decode(f, like=h.double())
    out = ops.steer(h, sae.plan(Edit.scale(dict.fromkeys(edited, 2.0))))
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 30))
def test_permuting_tokens_permutes_the_result(seed, n, k):
    sae, h = make_sae(ss.TopK(k), whole=True), (2 * hidden(n, seed=seed)).round()
    plan = sae.plan(Edit.scale(dict.fromkeys(range(0, F, 11), 2.0)))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(ops.steer(h[order], plan), ops.steer(h, plan)[order])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sets(st.integers(0, F - 1), min_size=2, max_size=12))
def test_edits_on_disjoint_features_add(seed, features):
    sae, h = make_sae(ss.TopK(K)), hidden(3, seed=seed)
    first, second = sorted(features)[::2], sorted(features)[1::2]
    change = [ops.steer(h, sae.plan(Edit.scale(dict.fromkeys(part, 2.0)))) - h for part in (first, second)]
    both = ops.steer(h, sae.plan(Edit.scale(dict.fromkeys(first + second, 2.0)))) - h
    torch.testing.assert_close(both, change[0] + change[1], rtol=1e-5, atol=1e-5)
