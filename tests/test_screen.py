"""The int8 copy of an encoder: its codes, and the bound that makes it a proof."""

import math

import pytest
import torch

from sparsesteer.screen import GROUP, Screen


def decoded(screen, width):
    """The rows that the codes stand for, fp64."""
    steps = screen.scale.double().repeat_interleave(GROUP, 1)[:, :width]
    return screen.codes.double() * steps


@pytest.mark.parametrize("width", [1, 127, 128, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_error_bounds_the_length_of_what_is_missed(width, dtype):
    encoder = (torch.randn(50, width) * torch.logspace(-6, 6, 50)[:, None]).to(dtype)
    screen = Screen.of(encoder)
    missed = (encoder.double() - decoded(screen, width)).norm(dim=-1)
    length = encoder.double().norm(dim=-1)
    assert (missed <= screen.error).all()
    assert (screen.error < 0.02 * length).all(), "a bound that excludes nothing"
    assert screen.codes.dtype == torch.int8 and screen.scale.shape == (50, -(-width // GROUP))


def test_products_in_fp32_stay_within_the_bound():
    """Against a token along what is missed, the worst there is."""
    encoder = torch.randn(200, 300)
    screen = Screen.of(encoder)
    approximate = decoded(screen, 300)
    x = (encoder.double() - approximate).float()
    exact = (encoder * x).sum(-1).double()
    screened = (approximate.float() * x).sum(-1).double()
    off, bound = (exact - screened).abs(), screen.error.double() * x.double().norm(dim=-1)
    assert (off <= bound).all()
    assert (off > 0.9 * bound).any(), "the bound is nearly met here"


def test_rows_beyond_the_bound_are_always_looked_at():
    encoder = torch.zeros(6, 10)
    encoder[1, 3], encoder[2, 3], encoder[3, 3] = math.nan, math.inf, 1e20
    encoder[4] = 1e-42
    encoder[5] = 1.0
    screen = Screen.of(encoder)
    assert torch.isinf(screen.error).tolist() == [False, True, True, True, False, False]
    assert not screen.codes[:4].any()
    assert (screen.error > 0).all()


def test_bands_of_rows_do_not_show(monkeypatch):
    encoder = torch.randn(30, 140)
    whole = Screen.of(encoder)
    monkeypatch.setattr("sparsesteer.screen._BAND_NUMBERS", 1000)
    banded = Screen.of(encoder)
    for name in ("codes", "scale", "error"):
        assert torch.equal(getattr(whole, name), getattr(banded, name))


def test_no_rows():
    screen = Screen.of(torch.zeros(0, 20))
    assert screen.codes.shape == (0, 20) and screen.error.shape == (0,)


def test_other_dtypes():
    with pytest.raises(TypeError, match="should be fp32 or bf16, got torch.float64"):
        Screen.of(torch.zeros(3, 4, dtype=torch.float64))
