"""The native estimate against the reference, and what it refuses below the Python border."""

import pytest
import torch
from information_cases import KINDS, codes, labels

from sparsesteer import _native, reference

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(_native.extension is None, reason=f"no extension: {_native.reason}"),
]


def arguments(kind="sparse", n=120, f=20, dtype=torch.float64, n_classes=2):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(f + 3, n, generator=generator, dtype=torch.float64)
    rows = torch.randint(0, f + 3, (f,), generator=generator)
    y = torch.from_numpy(labels(n, n_classes)).int()
    return torch.from_numpy(codes(kind, n, f)).T.to(dtype), y, noise, noise.argsort(-1).int(), rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_neighbors", [1, 3, 200])
def test_agrees_with_the_reference(kind, n_neighbors):
    given = arguments(kind)
    want = reference.mutual_information(*given, n_neighbors)
    torch.testing.assert_close(_native.extension.mutual_information(*given, n_neighbors), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "f", "n_classes"), [(11, 3, 2), (129, 1, 3), (300, 41, 5), (9, 0, 2), (1000, 17, 2)])
def test_odd_shapes_in_fp32_with_samples_left_out(n, f, n_classes):
    columns, y, *rest = arguments(n=n, f=f, dtype=torch.float32, n_classes=n_classes)
    y[y.argmax()] = -1
    want = reference.mutual_information(columns, y, *rest, 3)
    torch.testing.assert_close(_native.extension.mutual_information(columns, y, *rest, 3), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["of few values", "constant", "dead", "dense"])
@pytest.mark.parametrize("n_neighbors", [1, 20])
def test_without_noise_many_are_equally_far(kind, n_neighbors):
    columns, y, noise, order, rows = arguments(kind, n=150)
    given = columns, y, torch.zeros_like(noise), order, rows
    want = reference.mutual_information(*given, n_neighbors)
    torch.testing.assert_close(_native.extension.mutual_information(*given, n_neighbors), want, rtol=0, atol=1e-12)


def test_is_deterministic_over_threads():
    given, before = arguments(f=300), torch.get_num_threads()
    many = _native.extension.mutual_information(*given, 3)
    torch.set_num_threads(1)
    alone = _native.extension.mutual_information(*given, 3)
    torch.set_num_threads(before)
    assert torch.equal(many, alone)


def changed(position, change):
    def make():
        given = list(arguments())
        given[position] = change(given[position])
        return given

    return make


WRONG = {
    "columns of halves": (changed(0, lambda t: t.half()), "columns should be float or double"),
    "NaN": (changed(0, lambda t: t.index_fill(1, torch.tensor([3]), torch.nan)), "columns have NaN or infinite"),
    "labels too few": (changed(1, lambda t: t[:-1]), "labels should have shape"),
    "labels of int64": (changed(1, lambda t: t.long()), "labels should be Int"),
    "label too large": (changed(1, lambda t: t + 1000), "label 100[01] of 120 samples"),
    "lone class": (changed(1, lambda t: torch.cat([t[:-1], t[-1:] + 2])), "a class of one sample"),
    "noise too narrow": (changed(2, lambda t: t[:, 1:]), "noise should have shape|order should have shape"),
    "noise of NaN": (changed(2, lambda t: t * torch.nan), "noise has NaN"),
    "order out of range": (changed(3, lambda t: t + 1), "order should hold samples from 0 to 119"),
    "row out of range": (changed(4, lambda t: t + 23), "of 23 rows of noise"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_refuses(make, message):
    with pytest.raises(RuntimeError, match=message):
        _native.extension.mutual_information(*make(), 3)


def test_refuses_no_neighbours():
    with pytest.raises(RuntimeError, match="n_neighbors should be positive, got 0"):
        _native.extension.mutual_information(*arguments(), 0)
