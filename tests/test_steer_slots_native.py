"""The compiled ``steer_slots``: each token's bits are those of ``steer`` with its slot's plan, and fp64 agrees."""

import pytest
import torch
from instruction_sets import simd  # noqa: F401 - runs every test on each instruction set
from sae_cases import expected, slots_arguments
from steer_cases import edit_error, near_a_jump, rounding_excess

from sparsesteer import _native
from sparsesteer._layout import Column, InputNorm, OutputScale

if _native.extension is None:
    pytest.skip(_native.reason, allow_module_level=True)

pytestmark = pytest.mark.native

EDIT_ERROR = {torch.float32: 1e-5, torch.float64: 1e-12}
NARROW_EXCESS = 1e-2  # of the row's edit, beyond half an ulp of the output
SIZES = (3, 0, 7, 0, 40, 1, 0)  # entries of the slots; 1 and 3 have nothing but a bias, 6 has nothing at all


def run(given):
    return _native.extension.steer_slots(*given.values())


def plan_of(given, s):
    """The arguments of ``steer`` for the tokens of slot s, and which tokens these are."""
    chosen = (given["slot"] == s).nonzero()[:, 0]
    first, count, has_bias = given["slots"][s].tolist()
    shared = given["entry_row"][first : first + count].long()

    def of_tokens(name):
        return None if given[name] is None else given[name][chosen]

    return chosen, {
        "x": of_tokens("x"),
        "into": of_tokens("into"),
        "residual": of_tokens("residual"),
        "encoder": given["encoder"][shared],
        "decoder": given["decoder"][shared],
        "rows": given["rows"][first : first + count],
        "delta_bias": given["slot_bias"][s] if has_bias else None,
        "token_strength": of_tokens("token_strength"),
        **{name: given[name] for name in ("strength", "input_norm", "scale_rule", "gap", "preserve_norm")},
    }


def check(given):
    """Against ``steer`` bit for bit and, where no pre-activation is at a jump, against the reference in fp64."""
    out, want = run(given), expected("steer_slots", given)
    clear = torch.ones(len(out), dtype=torch.bool)
    steered = torch.zeros(len(out), dtype=torch.bool)
    for s in range(len(given["slots"])):
        chosen, plan = plan_of(given, s)
        assert torch.equal(out[chosen], _native.extension.steer(*plan.values()))
        clear[chosen] = ~near_a_jump(plan)
        steered[chosen] = True
    assert torch.equal(out[~steered], given["into"][~steered])
    out, want, into = out[clear], want[clear], given["into"][clear]
    if out.dtype in EDIT_ERROR:
        assert edit_error(out, want, into) < EDIT_ERROR[out.dtype]
    elif out.numel():
        assert rounding_excess(out, want, into) < NARROW_EXCESS


RULES = [
    pytest.param(norm, scale, keep, id=f"{norm.name}-{scale.name}-{'keep' if keep else 'free'}")
    for norm in InputNorm
    for scale in OutputScale
    for keep in (False, True)
]


@pytest.mark.parametrize("input_norm, scale_rule, keep_norm", RULES)
def test_rules(input_norm, scale_rule, keep_norm):
    given = slots_arguments(
        19, 72, 30, SIZES, input_norm=input_norm, scale_rule=scale_rule, keep_norm=keep_norm, token_strength=True
    )
    if scale_rule == OutputScale.GAP_FILL:  # a sum of d that cancels has no accurate inverse
        given["rows"][:, Column.FLOOR] = 0
    check(given)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("n, d", [(0, 64), (1, 577), (2, 64), (7, 77), (33, 200), (301, 65)])
def test_shapes(n, d, dtype):
    check(slots_arguments(n, d, 50, SIZES, dtype=dtype, residual=n % 2 == 1, seed=n))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_bf16_rows(dtype):
    check(slots_arguments(33, 72, 50, SIZES, dtype=dtype, row_dtype=torch.bfloat16))


def test_more_entries_than_a_block_and_many_repeats_of_a_row():
    given = slots_arguments(70, 65, 5, (300, 129))
    assert len(given["entry_row"].unique()) == 5
    check(given)


@pytest.mark.parametrize("slot", [[4] * 200, [4] + [-1] * 199, list(range(5)) * 40, [0] * 100 + [4] * 100])
def test_few_and_many_groups_on_any_number_of_threads(slot):
    given = slots_arguments(200, 72, 50, SIZES, slot)
    check(given)
    whole, threads = run(given), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(run(given), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_unsteered_tokens_keep_their_bits(dtype):
    slot = [-1, 2, 6, 7, 1_000_000, 0] * 4 + [0] * 6
    given = slots_arguments(30, 77, 20, SIZES, slot, dtype=dtype, token_strength=True)
    given["slots"][2] = 0  # removed
    given["into"][:, ::3] = -0.0
    out = run(given)
    kept = (given["slot"] != 0) | (given["token_strength"] == 0)
    assert kept.sum() == 22 and not torch.equal(out[~kept], given["into"][~kept])
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    assert torch.equal(out.view(bits)[kept], given["into"].view(bits)[kept])


@pytest.mark.parametrize("target", ("into", "x", "elsewhere"))
def test_out(target):
    given = slots_arguments(33, 72, 50, SIZES, residual=True, keep_norm=True)
    want = run(given)
    mine = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    out = mine[target] if target in mine else torch.empty_like(want)
    torch.ops.sparsesteer.steer_slots_out(*mine.values(), out=out)
    assert torch.equal(out, want)


def test_tensors_that_are_not_contiguous():
    given = slots_arguments(9, 64, 20, SIZES, residual=True)
    want = run(given)
    turned = {
        name: given[name].T.contiguous().T
        for name in ("x", "into", "residual", "encoder", "decoder", "rows", "slots", "slot_bias")
    }
    turned["slot"] = given["slot"].repeat_interleave(2)[::2]
    assert torch.equal(run(given | turned), want)


def test_huge_tiny_and_nan_tokens_stay_among_themselves():
    given = slots_arguments(12, 64, 20, SIZES, [0, 2, 4] * 4)
    want = run(given)
    for token, value in ((1, 1e38), (4, 1e-42), (6, float("nan")), (11, float("inf"))):
        given["x"][token] = value
    out, others = run(given), [0, 2, 3, 5, 7, 8, 9, 10]
    assert torch.equal(out[others], want[others])
    assert torch.isfinite(out[4]).all()


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("entry_row", 3, 20, "entry 3 names row 20, but there are 20"),
        ("entry_row", 3, -1, "entry 3 names row -1"),
        ("slots", (2, 0), -1, "slot 2 has 7 entries from -1 on, but there are 51"),
        ("slots", (2, 1), 49, "slot 2 has 49 entries from 3 on, but there are 51"),
        ("slots", (2, 1), -5, "slot 2 has -5 entries"),
    ],
)
def test_bad_tables(name, place, value, message):
    given = slots_arguments(6, 64, 20, SIZES, [0, 2] * 3)
    given[name][place] = value
    with pytest.raises(RuntimeError, match=message):
        run(given)


@pytest.mark.parametrize("name", ("slot", "slots", "entry_row", "rows", "slot_bias", "decoder", "into"))
def test_wrong_shapes_and_dtypes(name):
    given = slots_arguments(6, 64, 20, SIZES)
    with pytest.raises(RuntimeError, match=r"steer_slots: \w+ should have shape"):  # its own, or of what must fit it
        run(given | {name: given[name][:-1]})
    with pytest.raises(RuntimeError, match=f"steer_slots: {name} should"):
        run(given | {name: given[name].to(torch.float16)})
