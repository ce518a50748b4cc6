"""How well words predict held-out contexts: a feature that fires near its words, and one that does not."""

import pytest
import torch

from sparsesteer.methods.mi.quality import compared, held_out, predicted

V, L = 30, 12


def corpus():
    """Windows in which feature 0 fires at token 3, feature 1 at random, and feature 2 never."""
    g = torch.Generator().manual_seed(0)
    windows = torch.randint(4, V, (80, L), generator=g)
    windows[:40, 5] = 3
    codes = torch.zeros(80, L, 3)
    codes[:40, 5, 0] = torch.linspace(1, 2, 40)
    codes[torch.arange(80)[::2], 7, 1] = 1.0
    return windows, codes


def test_held_out_contexts():
    windows, codes = corpus()
    found = held_out(codes, windows, [10, 11, 12], most=15, around=2)
    assert found.n == {10: 15, 11: 15} and found.contexts[10].shape == (30, 5)
    assert torch.equal(found.contexts[10][:15], windows[torch.arange(39, 24, -1), 3:8])  # strongest first
    assert not (found.contexts[10][15:] == 3).any()
    edge = held_out(codes.roll(-5, 1), windows.roll(-5, 1), [10], most=2, around=2)
    assert (edge.contexts[10][:2, :2] == -1).all() and (edge.contexts[10][:2, 2] == 3).all()


def test_words_that_mean_the_token_predict_it():
    windows, codes = corpus()
    found = held_out(codes, windows, [0, 1, 2], most=15, around=2)
    embeddings = torch.eye(V)
    silent = torch.zeros(V, dtype=torch.bool)
    right = predicted({0: embeddings[3], 1: embeddings[3]}, found, embeddings, silent)
    assert right[0] == 1.0 and 0.3 < right[1] < 0.7
    assert predicted({0: torch.zeros(V)}, found, embeddings, silent) == {0: 0.5, 1: 0.5}
    silent[3] = True  # a token as frequent as that does not count
    assert predicted({0: embeddings[3]}, found, embeddings, silent)[0] == 0.5


def test_comparison_by_feature():
    found = compared({0: 0.9, 1: 0.8, 2: 0.5}, {0: 0.5, 1: 0.5, 2: 0.5})
    assert found["difference"] == pytest.approx(0.7 / 3) and found["better"] == pytest.approx(2 / 3)
    assert found["worse"] == 0 and found["features"] == 3 and 0 <= found["low"] <= found["difference"] <= found["high"]
