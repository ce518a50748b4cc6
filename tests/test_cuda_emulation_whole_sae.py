"""steer_topk and steer_reconstruct in CUDA: their logic, emulated as in ``test_cuda_emulation.py``."""

import emulated_cuda
import pytest
import sae_cases
import torch
from emulated_cuda import ENOUGH_SHARED, ORDERS, RULES, bits, check

from sparsesteer._layout import Column, InputNorm

if emulated_cuda.missing():
    pytest.skip(emulated_cuda.missing(), allow_module_level=True)


@pytest.fixture(scope="module")
def cuda():
    return emulated_cuda.load()


@pytest.fixture(params=("rising", "shuffled"), autouse=True)
def order(request, cuda):
    cuda.set_device(3, ENOUGH_SHARED, request.param)
    return request.param


@pytest.mark.parametrize(("input_norm", "scale_rule", "keep_norm"), RULES)
def test_topk_rules(cuda, input_norm, scale_rule, keep_norm):
    given = sae_cases.topk_arguments(
        3, 64, 60, 12, 15, input_norm=input_norm, scale_rule=scale_rule, keep_norm=keep_norm, residual=True, seed=5
    )
    check(cuda, "steer_topk", given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "d", "f", "m", "k"),
    [
        (1, 64, 50, 5, 7),
        (2, 8, 3, 3, 1),
        (3, 136, 200, 40, 200),
        (8, 64, 301, 70, 9),
        (5, 72, 90, 0, 3),
        (4, 64, 1, 1, 1),
    ],
)
def test_topk_shapes_in_ties(cuda, n, d, f, m, k, dtype):
    given = sae_cases.topk_arguments(
        n, d, f, m, k, whole=True, duplicates=True, dtype=dtype, row_dtype=dtype, bias=n == 2, token_strength=n > 2,
        seed=n,
    )  # fmt: skip
    check(cuda, "steer_topk", given)


def ranked(given):
    """Features of token 0 by falling z, lower index first, and z itself."""
    z = sae_cases.pre_activations({**given, "rows": torch.zeros(len(given["encoder"]), 10)})[0] + given["encoder_bias"]
    return z.sort(descending=True, stable=True).indices


@pytest.mark.parametrize("whole", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("k", [1, 6, 12])
def test_topk_at_the_border(cuda, k, whole):
    given = sae_cases.topk_arguments(1, 64, 90, 4, k, whole=whole, duplicates=whole, seed=k)
    first = ranked(given)
    features = first[[max(0, k - 2), k - 1, k, k + 1]].unique()
    given = sae_cases.topk_arguments(
        1, 64, 90, len(features), k, features=features, whole=whole, duplicates=whole, seed=k
    )
    given["rows"][:, Column.C0 :] = torch.tensor([0.0, -1.0, 0.0, 0.0, 0.0])  # ablate
    out = check(cuda, "steer_topk", given)
    assert not torch.equal(out, given["into"])


def test_topk_without_a_positive_feature_still_sets_what_is_not_gated(cuda):
    given = sae_cases.topk_arguments(3, 64, 50, 6, 5)
    given["encoder_bias"].fill_(-100)
    check(cuda, "steer_topk", given)


def test_topk_bits_depend_on_nothing_but_the_token(cuda):
    given = sae_cases.topk_arguments(6, 64, 120, 20, 11, input_norm=InputNorm.CONSTANT_NORM)
    together = cuda.steer_topk_cuda(*given.values())
    cuda.set_device(7, ENOUGH_SHARED, "falling")
    for i in range(6):
        one = given | {name: given[name][i : i + 1] for name in ("x", "into")}
        assert torch.equal(bits(cuda.steer_topk_cuda(*one.values())), bits(together[i : i + 1]))


@pytest.mark.parametrize("keep_norm", [False, True], ids=["", "keep_norm"])
@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
@pytest.mark.parametrize("k", [0, 9])
def test_reconstruct_rules(cuda, k, input_norm, keep_norm):
    given = sae_cases.reconstruct_arguments(
        3, 64, 70, 12, k, input_norm=input_norm, keep_norm=keep_norm, activation="mixed", residual=True, seed=2,
        token_strength=True,
    )  # fmt: skip
    check(cuda, "steer_reconstruct", given, sae_cases.clear_tokens(given, "table"))


@pytest.mark.parametrize("activation", ["mixed", "identity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "d", "f", "m", "k"),
    [
        (1, 64, 50, 5, 7),
        (2, 8, 3, 3, 1),
        (3, 136, 200, 40, 200),
        (8, 64, 301, 70, 9),
        (5, 72, 90, 0, 0),
        (4, 64, 1, 1, 1),
    ],
)
def test_reconstruct_shapes_in_ties(cuda, n, d, f, m, k, dtype, activation):
    given = sae_cases.reconstruct_arguments(
        n, d, f, m, k, whole=True, duplicates=True, activation=activation, dtype=dtype, row_dtype=dtype, seed=n
    )
    check(cuda, "steer_reconstruct", given)


@pytest.mark.parametrize("multiprocessors", [1, 4, 9])
@pytest.mark.parametrize("k", [1, 5, 36, 69])
def test_reconstruct_takes_the_lower_indices_of_equals(cuda, k, multiprocessors, order):
    """All pre-activations are equal, so that the border runs through every block."""
    cuda.set_device(multiprocessors, ENOUGH_SHARED, order)
    given = sae_cases.reconstruct_arguments(2, 64, 70, 8, k)
    given["encoder"].zero_()
    given["table"][:, Column.BIAS] = 1.0
    check(cuda, "steer_reconstruct", given)


def test_reconstruct_counts_both_zeros_as_one(cuda):
    given = sae_cases.reconstruct_arguments(1, 64, 40, 3, 20, activation="identity")
    given["encoder"].zero_()
    given["table"][:, Column.BIAS] = torch.where(torch.arange(40) % 2 == 0, -0.0, 0.0)
    given["table"][:, Column.SHIFT] = 1.0
    check(cuda, "steer_reconstruct", given)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_reconstruct_with_nothing_and_with_everything_active(cuda, density):
    given = sae_cases.reconstruct_arguments(3, 64, 70, 12, activation="relu")
    given["table"][:, Column.BIAS] += 100 if density else -100
    check(cuda, "steer_reconstruct", given)


@pytest.mark.parametrize("op", ["steer_topk", "steer_reconstruct"])
def test_bits_do_not_depend_on_the_order_of_threads(cuda, op):
    given = getattr(sae_cases, op.removeprefix("steer_") + "_arguments")(5, 64, 120, 20, 11)
    results = []
    for order in ORDERS:
        cuda.set_device(4, ENOUGH_SHARED, order)
        results.append(getattr(cuda, f"{op}_cuda")(*given.values()))
    assert torch.equal(bits(results[0]), bits(results[1])) and torch.equal(bits(results[0]), bits(results[2]))


@pytest.mark.parametrize("op", ["steer_topk", "steer_reconstruct"])
def test_a_token_that_is_not_a_number_stays_alone(cuda, op):
    given = getattr(sae_cases, op.removeprefix("steer_") + "_arguments")(
        3, 64, 50, 6, 5, input_norm=InputNorm.LAYER_NORM
    )
    clean = getattr(cuda, f"{op}_cuda")(*given.values())
    given["x"][1] = float("nan")
    assert torch.equal(bits(getattr(cuda, f"{op}_cuda")(*given.values())[::2]), bits(clean[::2]))
