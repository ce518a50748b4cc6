"""What the demonstration decides by: which answers it shows, and when it shows no speed."""

import math

import pytest
import torch

from sparsesteer.demo import choose, compare, speed


def test_repetition():
    assert choose.repetition("a b c d e") == 0
    assert choose.repetition("one bird sings. One bird sings.") == pytest.approx(1 / 4)
    assert choose.repetition("short") == 0


def heard(feature, landed, surprise=0.0, repetition=0.0, value=1.0):
    candidate = choose.Candidate(feature, "topic", 0.5)
    return choose.Audition(candidate, value, "text", landed, surprise, repetition)


def test_the_best_are_readable_and_of_different_features():
    rule = choose.Rule(chosen=2, most_surprise=1.0, most_repetition=0.1)
    auditions = [
        heard(1, 0.9, surprise=1.1),
        heard(2, 0.9, repetition=0.2),
        heard(3, 0.2),
        heard(4, 0.5, value=1.0),
        heard(4, 0.5, value=2.0, surprise=-0.1),
        heard(5, 0.0),
    ]
    assert choose.best(auditions, rule) == [auditions[4], auditions[2]]
    assert choose.best([heard(5, 0.0)], rule) == []


def test_a_random_feature_lives_and_is_not_chosen():
    density = torch.tensor([0.0, 0.1, 0.1, 0.0, 0.1])
    picks = {compare.random_feature(density, [1], seed) for seed in range(30)}
    assert picks == {2, 4}
    assert density[1] == pytest.approx(0.1)


def test_steering_without_effect_is_a_disagreement():
    same = torch.ones(2, 3)
    differences = speed.relative_differences({"unsteered": same, "sparsesteer": same, speed.GATHERED: same})
    assert differences["sparsesteer"] == math.inf


def test_the_interval_holds_the_median():
    values = torch.randn(15, generator=torch.Generator().manual_seed(0))
    low, high = speed.median_interval(values)
    assert values.min() <= low <= values.median() <= high <= values.max()
    assert speed.median_interval(torch.ones(15)) == (1.0, 1.0)
    assert speed.median_interval(values) == (low, high)
