"""The Triton kernels of ``encode`` against the reference in fp64."""

import math

import encode_forms
import pytest
import torch
import triton
import triton.language as tl
from sae_cases import ACTIVATIONS, clear_tokens, encode_arguments, expected, in_fp64
from triton_device import DEVICE, HALVES, INTERPRETED, pytestmark  # noqa: F401

from sparsesteer import reference
from sparsesteer._layout import Column, InputNorm
from sparsesteer.kernels import encode as encode_kernels
from sparsesteer.kernels import select
from sparsesteer.kernels.encode import encode

ERROR = 1e-5


@pytest.fixture(params=encode_forms.FORMS)
def form(request, monkeypatch):
    encode_forms.force(monkeypatch, encode_kernels, request.param)
    return request.param


@pytest.fixture
def cramped(monkeypatch):
    encode_forms.force(monkeypatch, encode_kernels, "cramped")


def arguments(*sizes, **options):
    return encode_arguments(*sizes, device=DEVICE, **options)


def check(given):
    """Every index with its own activation in falling order, the largest of them, the rest padding."""
    clear = clear_tokens(given)
    assert clear.float().mean() > 0.6
    values, indices, counts = encode(*given.values())
    want, _, active = expected("encode", given)
    assert (values.dtype, indices.dtype, counts.dtype) == (torch.float32, torch.int32, torch.int32)
    wide = in_fp64(given)
    dense = reference.dense_codes(wide["x"], wide["encoder"], wide["rows"], given["k"], given["input_norm"])
    present = torch.arange(given["width"], device=DEVICE) < active[:, None]
    own = dense.gather(1, indices.clamp(min=0).long())
    assert torch.equal(counts[clear], active[clear])
    assert torch.equal((indices >= 0)[clear], present[clear])
    assert torch.equal((indices.sort(1).values.diff() == 0).any(1)[clear], (~present).sum(1)[clear] > 1)
    assert not values[~present].any()
    scale = want.abs().max().clamp(min=1)
    assert ((own - values) * present)[clear].abs().max() <= ERROR * scale
    assert (want - values)[clear].abs().max() <= ERROR * scale


def check_exactly(given):
    """Whole numbers: no rounding anywhere, so that even the order of ties is the reference's."""
    for mine, want in zip(encode(*given.values()), expected("encode", given), strict=True):
        assert torch.equal(mine.double(), want.double())


def test_every_form(form):
    check(arguments(2, 40, 150, 0, 60, activation="mixed"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    check(arguments(2, 40, 150, 0, 60, activation=activation))


@pytest.mark.parametrize("k", [1, 20])
def test_topk_with_ties(form, k):
    check_exactly(arguments(2, 40, 150, k, k, whole=True, duplicates=True))


@pytest.mark.parametrize("k", [149, 150, 200])
def test_nearly_all_or_all_of_the_features(k):
    check_exactly(arguments(2, 40, 150, k, 40, whole=True))


@pytest.mark.parametrize("activation", ["jumprelu", "mixed"])
def test_topk_of_rows_that_are_not_relu(activation):
    """The k largest z are chosen first; which of them are active, and in which order, the table says."""
    check_exactly(arguments(2, 33, 150, 20, 24, activation=activation, whole=True))


@pytest.mark.parametrize("input_norm", InputNorm, ids=lambda norm: norm.name)
@pytest.mark.parametrize("k", [0, 9])
def test_input_norms(k, input_norm):
    check(arguments(2, 77, 150, k, 50, input_norm=input_norm))


@pytest.mark.parametrize(
    ("n", "k", "width", "d", "f"),
    [
        (0, 5, 5, 77, 90),
        (1, 5, 5, 77, 90),
        (1, 0, 16, 64, 100),
        (7, 4, 9, 1, 33),
        (7, 0, 9, 77, 33),
        (33, 2, 2, 40, 20),
    ],
)
def test_the_tiling_of_the_shape(n, k, width, d, f):
    check_exactly(arguments(n, d, f, k, width, whole=True))


@pytest.mark.parametrize("k", [0, 6])
def test_chunks_of_tokens(k, monkeypatch):
    encode_forms.force(monkeypatch, encode_kernels, "roomy")
    check_exactly(arguments(2 * encode_forms.CHUNK + 1, 33, 60, k, 20, whole=True))


def test_more_active_features_than_columns(cramped):
    given = arguments(2, 40, 100, 0, 7, activation="identity")
    check(given)
    assert (encode(*given.values())[2] == 100).all()


@pytest.mark.parametrize("k", [0, 5])
def test_a_full_buffer_is_cut_again_and_again(cramped, monkeypatch, k):
    """The sample is low, so that its bound holds nobody back, and the others rise: what was kept is worse than what
    comes."""
    given = arguments(2, 8, 400, k, 5, whole=True)
    feature = torch.arange(400, device=DEVICE)
    given["rows"][:, Column.BIAS] = torch.where(feature // 16 % 4 == 0, -1000, feature // 3).float()
    found = []
    launch = encode_kernels.find_candidates
    monkeypatch.setattr(encode_kernels, "find_candidates", lambda *a: found.append(launch(*a)) or found[0])
    check_exactly(given)
    assert (found[0].found > found[0].packed.shape[1]).all(), "the buffer should overflow"


def test_a_token_of_zeros_ties_everywhere_and_still_fits(cramped):
    """All z are equal: the index takes part in the comparison, so that only the first blocks are candidates."""
    given = arguments(2, 16, 300, 4, 4, whole=True)
    given["rows"][:, Column.BIAS] = 1.0
    given["x"].zero_()
    check_exactly(given)
    assert torch.equal(encode(*given.values())[1].cpu(), torch.arange(4).int().expand(2, 4))


@pytest.mark.parametrize(("k", "width"), [(0, 40), (30, 12), (30, 40)], ids=str)
def test_rows_that_a_library_sorts(k, width, monkeypatch):
    monkeypatch.setattr(encode_kernels, "SORT_LIMIT", 8)
    check_exactly(arguments(2, 33, 150, k, width, whole=True, duplicates=True))


def test_nothing_active():
    given = arguments(3, 20, 100, 0, 10)
    given["rows"][:, Column.THRESHOLD] = math.inf
    values, indices, counts = encode(*given.values())
    assert not values.any() and (indices == -1).all() and not counts.any()
    check_exactly(given | {"k": 5})


@pytest.mark.parametrize("k", [0, 12])
def test_all_active(k):
    given = arguments(2, 33, 150, k, 150, whole=True)
    given["rows"][:, Column.BIAS] = 1000.0
    check_exactly(given)


@pytest.mark.parametrize("k", [0, 6])
def test_huge_and_denormal_values(k):
    huge = arguments(2, 16, 60, k, 20, whole=True)
    huge["x"] *= 2.0**100
    check_exactly(huge)
    denormal = arguments(2, 16, 60, k, 20, whole=True)
    denormal["x"].zero_()
    denormal["rows"][:, Column.BIAS] *= 2.0**-140
    check_exactly(denormal)


@triton.jit
def pack_and_unpack(values_ptr, packed_ptr, back_ptr, index_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    packed = select.pack(select.ordered(tl.load(values_ptr + at)), at)
    tl.store(packed_ptr + at, packed)
    tl.store(back_ptr + at, select.value_of(packed))
    tl.store(index_ptr + at, select.index_of(packed))


def test_packed_numbers_have_the_order_of_values_then_of_indices():
    values = [-math.inf, -1.5, -1e-40, -0.0, 0.0, 1e-40, 1.5, 1.5, -1.5, 3e38, math.inf, 0.0, -0.0, 2.0, -2.0, 1.0]
    values = torch.tensor(values, device=DEVICE)
    packed, index = (torch.empty(16, dtype=torch.int64, device=DEVICE) for _ in range(2))
    back = torch.empty_like(values)
    pack_and_unpack[(1,)](values, packed, back, index, N=16)
    want = values.sort(descending=True, stable=True)
    assert torch.equal(packed.argsort(descending=True), want.indices)
    assert torch.equal(back, values) and torch.equal(index.cpu(), torch.arange(16))
    assert not back[values == 0].signbit().any()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("row_dtype", [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [0, 8])
def test_narrow_types(dtype, row_dtype, k):
    check(arguments(2, 40, 150, k, 60, dtype=dtype, row_dtype=row_dtype))
    check_exactly(arguments(2, 40, 150, k, 60, dtype=dtype, row_dtype=row_dtype, whole=True, duplicates=True))


def test_strides():
    given = arguments(4, 33, 100, 6, 6, whole=True)
    want = encode(*given.values())
    x = torch.full((4, 50), torch.nan, device=DEVICE)
    x[:, 7:40] = given["x"]
    strided = given | {"x": x[:, 7:40], "encoder": given["encoder"].T.contiguous().T}
    strided["rows"] = given["rows"].repeat(1, 2)[:, :10]
    assert all(map(torch.equal, encode(*strided.values()), want))


@pytest.mark.parametrize("k", [0, 6])
def test_a_broken_token_stays_alone(cramped, k):
    given = arguments(5, 40, 90, k, 20)
    want = encode(*given.values())
    given["x"][1], given["x"][3, 5] = torch.nan, torch.inf
    for mine, before in zip(encode(*given.values()), want, strict=True):
        assert torch.equal(mine[[0, 2, 4]], before[[0, 2, 4]])


def test_same_input_same_bits(form):
    given = arguments(2, 40, 150, 12, 12, input_norm=InputNorm.LAYER_NORM)
    first, second = encode(*given.values()), encode(*given.values())
    assert all(map(torch.equal, first, second))


def test_the_order_of_arrival_does_not_show(monkeypatch):
    """On a GPU programs append in any order; the interpreter runs them in one, so the buffer is shuffled here."""
    given = arguments(2, 33, 150, 10, 10, whole=True, duplicates=True)
    encode_forms.force(monkeypatch, encode_kernels, "roomy")
    want = encode(*given.values())
    found = encode_kernels.find_candidates

    def shuffled(*args):
        candidates = found(*args)
        for packed, count in zip(candidates.packed, candidates.found.tolist(), strict=True):
            packed[:count] = packed[torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(DEVICE)]
        return candidates

    monkeypatch.setattr(encode_kernels, "find_candidates", shuffled)
    assert all(map(torch.equal, encode(*given.values()), want))


def test_the_op_is_registered_as_torch_wants_it():
    given = arguments(2, 16, 40, 3, 5)
    torch.library.opcheck(torch.ops.sparsesteer.encode.default, tuple(given.values()))
    assert all(map(torch.equal, torch.ops.sparsesteer.encode(*given.values()), encode(*given.values())))


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize(("k", "width"), [(64, 64), (0, 512), (0, 2048)])
def test_a_graph_replays_on_changed_inputs(n, k, width):
    given = arguments(n, 576, 4608, k, width)
    encode(*given.values())  # compiles outside the graph
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        codes = encode(*given.values())
    for _ in range(2):
        given["x"].normal_()
        graph.replay()
        assert all(map(torch.equal, codes, encode(*given.values())))
