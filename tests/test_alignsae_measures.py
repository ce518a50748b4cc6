"""How swaps and slots are judged, against counts by hand."""

import math

import pytest
import torch
from alignsae_cases import states

import sparsesteer as ss
from sparsesteer.datasets.biographies import Question
from sparsesteer.methods.alignsae.matching import lenient_match, strict_match
from sparsesteer.methods.alignsae.measures import Binding, Concentration, mean_codes, unexplained
from sparsesteer.methods.alignsae.ordinary import OrdinaryFeatures
from sparsesteer.methods.alignsae.swapping import Swap, categories, judged, rate, summary, swaps_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("wanted", "answer", "strict", "lenient"),
    [
        ("Redcliff College", "Redcliff College", True, True),
        ("Redcliff College", " Redcliff College ", True, True),
        ("Redcliff College", "redcliff college", False, True),
        ("Redcliff College", "Red", False, True),  # a part of the wanted answer counts by the released rule
        ("Redcliff College", "Redcliff College of Law", False, True),
        ("Redcliff College", "Redcliff Institute", False, False),
        ("Redcliff College", "", False, False),
        ("3 May 1971", "3 May 1971", True, True),
        ("3 May 1971", "May 3, 1971", False, True),
        ("3 May 1971", "3,May,1971", False, True),
        ("3 May 1971", "3 May 1972", False, False),
        ("3 May 1971", "13 May 1971", False, False),
        ("13 May 1971", "3 May 1971", False, False),  # a part of the text, and another day
    ],
)
def test_matches(wanted, answer, strict, lenient):
    assert (strict_match(wanted, answer), lenient_match(wanted, answer)) == (strict, lenient)


def test_binding_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    found = Binding.of(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), labels, 3)
    assert found.counts.tolist() == [[3, 0, 0], [1, 1, 0], [0, 1, 2]]
    assert found.accuracy == 6 / 8 and found.diagonal == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert found.shares.sum(0).tolist() == [1, 1, 1]


def test_concentration_by_hand():
    means = torch.tensor([[0.0, 3.0, 0.0, -5.0], [1.0, 1.0, 1.0, 1.0], [3.0, 1.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0]])
    found = Concentration.of(means)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    wanted = torch.tensor([1.0, 4.0, math.exp(entropy), 1.0], dtype=torch.float64)
    torch.testing.assert_close(found.effective_features, wanted)
    torch.testing.assert_close(found.top_share, torch.tensor([1.0, 0.25, 0.75, 0.0], dtype=torch.float64))


@pytest.fixture
def ordinary():
    """An SAE of which feature c answers concept c, and feature 3 all of them alike."""
    some = states(per_concept=30)
    (whole,) = some.in_order()
    centres = torch.stack([whole.h[whole.labels == c].mean(0) for c in range(3)])
    encoder = torch.cat([torch.linalg.pinv(centres), torch.zeros(8, 1)], 1)
    return some, ss.SAE(
        W_enc=encoder, W_dec=torch.randn(4, 8), b_enc=torch.tensor([0.0, 0, 0, 5]), activation=ss.ReLU()
    )


def test_ordinary_features(ordinary):
    some, sae = ordinary
    means = mean_codes(sae, some, 3)
    (whole,) = some.in_order()
    by_hand = torch.stack([sae.encode(whole.h)[whole.labels == c].mean(0) for c in range(3)])
    torch.testing.assert_close(means.float(), by_hand)
    found = OrdinaryFeatures.fit(sae, some, 3)
    assert found.features.tolist() == [[0], [1], [2]] and found.binding(some).accuracy > 0.9
    h = whole.h[whole.labels == 0][:5]
    edited = sae.encode(h)
    edited[:, 0], edited[:, 1] = 0.0, 2 * by_hand[1, 1]
    plan = found.plan(0, 1, 2.0, reconstruct=True)
    torch.testing.assert_close(ss.ops.steer(h, plan), sae.decode(edited), atol=1e-5, rtol=1e-5)
    two = OrdinaryFeatures.fit(sae, some, 3, n=2)
    assert two.features.shape == (3, 2) and two.features[:, 0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="n should be from 1 to the SAE's 4 features"):
        OrdinaryFeatures.fit(sae, some, 3, n=5)


def test_unexplained_variance(ordinary):
    some, sae = ordinary
    (whole,) = some.in_order()
    missed = (whole.h - sae.decode(sae.encode(whole.h))).pow(2).sum()
    wanted = missed / (whole.h - whole.h.mean(0)).pow(2).sum()
    assert unexplained(sae, some) == pytest.approx(float(wanted), rel=1e-4)


ASKED = [
    Question("who?", 0, ("Ada", "Rome", "Rome"), "one"),
    Question("where?", 1, ("Basil", "Oslo", "Bern"), "two"),
    Question("where?", 1, ("Celia", "Lima", None), "three"),
]


def test_swaps_are_to_other_answers():
    assert swaps_of(ASKED) == [Swap(0, 0, 1), Swap(0, 0, 2), Swap(1, 1, 0), Swap(1, 1, 2), Swap(2, 1, 0)]
    same = Question("where?", 1, ("Ada", "Rome", "Rome"), "one")
    assert swaps_of([same]) == [Swap(0, 1, 0)]  # the third concept has the same answer
    few = swaps_of(ASKED, most=3)
    assert len(few) == 3 and few == swaps_of(ASKED, most=3) and set(few) < set(swaps_of(ASKED))


def test_outcomes_are_judged_and_counted():
    known = categories(ASKED, 3)
    assert known == [{"Ada", "Basil", "Celia"}, {"Rome", "Oslo", "Lima"}, {"Rome", "Bern"}]
    outcomes = [
        judged(ASKED[swap.question], swap, answer, known)
        for swap, answer in zip(swaps_of(ASKED), ["Rome", "Ro", "Ada", "Oslo", "Celia"], strict=True)
    ]
    assert [o.strict for o in outcomes] == [True, False, False, False, True]
    assert [o.lenient for o in outcomes] == [True, True, False, False, True]
    assert [o.category for o in outcomes] == [True, False, True, False, True]
    assert [o.kept for o in outcomes] == [False, False, False, True, False]
    found = summary(outcomes, ASKED, right=[True, False, True])
    assert found["strict"]["mean"] == 2 / 5 and found["strict"]["n"] == 5
    assert found["strict_of_right"]["mean"] == 2 / 3 and found["strict_of_right"]["n"] == 3
    assert found["strict"]["low"] <= 0.4 <= found["strict"]["high"]


def test_intervals_draw_entities():
    """A hundred questions about one entity are one observation."""
    alone = rate([True, False] * 50, ["one"] * 100)
    each = rate([True, False] * 50, [str(i) for i in range(100)])
    assert alone.low == alone.high == 0.5 and 0.38 < each.low < 0.42 and 0.58 < each.high < 0.62
