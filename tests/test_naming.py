"""Names and relative values at an SAE: the same plan as their numbers, and what is refused."""

from dataclasses import replace

import pytest
import torch
from small_sae import F, hidden, make_sae
from test_plans import assert_same

import sparsesteer as ss
from sparsesteer import Edit, Explanations, Site

NEURONPEDIA = "gpt2-small/8-res-jb"


def named_sae(**options):
    """Feature 0 is "music" and "song", 1 "song" and "sea", 2 "big cats"; maxima 0, 1, 2, ..."""
    sae = make_sae(feature_maximum=torch.arange(float(F)), site=Site(neuronpedia_id=NEURONPEDIA), **options)
    lists = [[("Music", 3.0), ("song", 1.0)], [("song", 2.0), ("sea", 1.0)], [("big cats", 1.0)]]
    sae.explanations = Explanations.of([*lists, *([[]] * (F - 3))], method="by hand", method_version="1")
    return sae


PAIRS = [
    (Edit.set({5: "2x max"}), Edit.set({5: 10.0})),
    (Edit.add({5: "0.5x max", 7: "max"}), Edit.add({5: 2.5, 7: 7.0})),
    (Edit.cap({5: "-1x max"}, when_active=True), Edit.cap({5: -5.0}, when_active=True)),
    (Edit.floor({5: "max"}), Edit.floor({5: 5.0})),
    (Edit.set({"music": 8}), Edit.set({0: 8})),
    (Edit.scale({"SEA": 3}), Edit.scale({1: 3})),
    (Edit.ablate(["cats", 9]), Edit.ablate([2, 9])),
    (Edit.add({"song sea": "2x max"}), Edit.add({1: 2.0})),
    (Edit.hinge({"cats big": (1, 2, 3, 4)}), Edit.hinge({2: (1, 2, 3, 4)})),
    (Edit.set({f"{NEURONPEDIA}/123": 8}), Edit.set({123: 8})),
    (Edit.ablate([f"https://www.neuronpedia.org/{NEURONPEDIA}/7"]), Edit.ablate([7])),
]


@pytest.mark.parametrize("activation", [ss.ReLU(), ss.TopK(7)], ids=["relu", "topk"])
@pytest.mark.parametrize("said, meant", PAIRS)
def test_names_and_relative_values_give_the_plan_of_their_numbers(said, meant, activation):
    sae = named_sae(activation=activation)
    assert_same(sae.plan(said), sae.plan(meant))


def test_twice_the_maximum_by_hand():
    sae, h = named_sae(), hidden()
    steered = ss.ops.steer(h, sae.plan(Edit.set({5: "2x max"})))
    f = sae.encode(h)[:, 5:6]
    torch.testing.assert_close(steered, h + (10 - f) * sae.W_dec[5])


def test_the_way_to_another_device_keeps_names_and_maxima():
    moved = named_sae().to("meta")
    assert moved.explanations is not None and moved.explanations.feature("music") == 0


REFUSED = [
    (Edit.set({0: "2x max"}), "set of feature 0 to 2x max: the feature's maximum is 0.0, it was never active"),
    (Edit.set({F: "max"}), f"feature {F} is out of range, this SAE has 0 to {F - 1}"),
    (Edit.set({f"{NEURONPEDIA}/{F}": 1}), f"feature {F} is out of range"),
    (Edit.set({"song": 1}), r"'song' stands in the explanations of 2 features.*1 \(song, sea\); 0 \(Music, song\)"),
    (Edit.set({"musik": 1}), "'musik' stands in no feature's explanation; close to it: music"),
    (Edit.set({"song cats": 1}), "'song cats' stands in no feature's explanation"),
    (Edit.set({"music": 1}) | Edit.ablate([0]), "feature 0 is named twice, as music and as 0"),
    (Edit.set({"gpt2-small/9-res-jb/3": 1}), f"of another SAE; this one is {NEURONPEDIA}"),
    (Edit.set({"gpt2-small/8-res-jb/x": 1}), "is no feature of Neuronpedia"),
]


@pytest.mark.parametrize("edit, message", REFUSED)
def test_what_is_refused(edit, message):
    with pytest.raises(ValueError, match=message):
        named_sae().plan(edit)


def test_an_sae_that_does_not_know_says_the_way_out():
    bare = make_sae()
    with pytest.raises(ValueError, match="cap of feature 3 to 2x max: this SAE does not know.*sae.feature_maximum = "):
        bare.plan(Edit.cap({3: "2x max"}))
    with pytest.raises(ValueError, match="feature 'music' is named by words.*sae.explanations = ss.Explanations.load"):
        bare.plan(Edit.cap({"music": 2}))
    with pytest.raises(ValueError, match="does not say which of Neuronpedia's it is.*neuronpedia_id=") as raised:
        bare.plan(Edit.cap({f"{NEURONPEDIA}/3": 2}))
    bare.site = replace(bare.site, neuronpedia_id=NEURONPEDIA)  # the way out that the message names
    assert 'replace(sae.site, neuronpedia_id="gpt2-small/8-res-jb")' in str(raised.value)
    assert bare.plan(Edit.cap({f"{NEURONPEDIA}/3": 2})).features.tolist() == [3]


def test_a_maximum_that_is_no_number_is_refused():
    sae = named_sae()
    sae.feature_maximum[5] = float("nan")
    with pytest.raises(ValueError, match="the feature's maximum is nan"):
        sae.plan(Edit.set({5: "max"}))
