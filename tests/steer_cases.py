"""Random arguments of ``steer`` whose edit is about as long as h, and the error of the edit against fp64."""

import math

import torch

from sparsesteer import reference
from sparsesteer._layout import N_COLUMNS, Column, InputNorm, OutputScale

TENSORS = ("x", "into", "residual", "encoder", "decoder", "rows", "delta_bias", "token_strength")
ROW_KINDS = 4


def arguments(
    n, m, width, out_width=None, *, dtype=torch.float32, row_dtype=torch.float32, device="cpu", seed=0,
    input_norm=InputNorm.NONE, scale_rule=OutputScale.ONE, keep_norm=False,
    residual=False, bias=False, token_strength=False,
):  # fmt: skip
    """The arguments of ``torch.ops.sparsesteer.steer`` by name. x is ``into`` unless ``out_width`` is given."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(n, width) + 0.5  # a mean that is not 0, for the norms
    target = width if out_width is None else out_width
    encoder = normal(m, width) / math.sqrt(width)
    if input_norm == InputNorm.LAYER_NORM:
        encoder -= encoder.mean(-1, keepdim=True)
    size = {OutputScale.RMS: 1.0, OutputScale.NORM: 1 / math.sqrt(width), OutputScale.GAP_FILL: 4.0}.get(
        scale_rule, 1.0
    )
    strengths = None
    if token_strength:
        strengths = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
        strengths[1::3] = 0
    given = {
        "x": x.to(dtype),
        "into": normal(n, target).to(dtype),
        "residual": normal(n, width).to(dtype) if residual else None,
        "encoder": encoder.to(row_dtype),
        "decoder": (normal(m, target) * size / math.sqrt(max(1, m))).to(row_dtype),
        "rows": row_table(m, generator, scale_rule),
        "delta_bias": normal(target).float() * size if bias else None,
        "token_strength": strengths.float() if token_strength else None,
    }
    given = {name: None if tensor is None else tensor.to(device) for name, tensor in given.items()}
    if out_width is None:
        given["into"] = given["x"]
    scalars = {
        "strength": 1.0 if token_strength else 0.75,
        "input_norm": int(input_norm),
        "scale_rule": int(scale_rule),
        "gap": 1.5,
        "preserve_norm": keep_norm,
    }
    return given | scalars


def row_table(m, generator, scale_rule):
    """relu, jumprelu, gated and identity rows in turn, with random edits; every third is gated on activity.

    Gap-fill divides by the sum of the edits: it gets its own edit, relu(1.5 - f), whose sum does not cancel.
    """
    rows = torch.zeros(m, N_COLUMNS, dtype=torch.float64)
    kind = torch.arange(m) % ROW_KINDS
    rows[:, Column.BIAS] = 0.3 * torch.randn(m, generator=generator, dtype=torch.float64)
    rows[:, Column.THRESHOLD] = torch.tensor([-math.inf, 0.4, -0.2, -math.inf], dtype=torch.float64)[kind]
    rows[:, Column.SLOPE] = torch.tensor([1.0, 1.0, 1.7, 1.0], dtype=torch.float64)[kind]
    rows[:, Column.SHIFT] = torch.tensor([0.0, 0.0, 0.1, 0.0], dtype=torch.float64)[kind]
    rows[:, Column.FLOOR] = torch.tensor([0.0, 0.0, 0.0, -math.inf], dtype=torch.float64)[kind]
    rows[:, Column.C0 : Column.KNOT] = torch.randn(m, 3, generator=generator, dtype=torch.float64)
    rows[:, Column.KNOT] = 0.5 * torch.rand(m, generator=generator, dtype=torch.float64)
    rows[:, Column.GATE] = (torch.arange(m) % 3 == 0).double()
    if scale_rule == OutputScale.GAP_FILL:
        rows[:, Column.C0 : Column.GATE] = torch.tensor([1.5, -1.0, 1.0, 1.5], dtype=torch.float64)
    return rows.float()


def expected(given):
    """The result in fp64."""
    doubled = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    return reference.steer(*doubled.values())


def near_a_jump(given, margin=1e-5):
    """Tokens [N] with a pre-activation so close to a jump of its edit that rounding may decide the side."""
    x = given["x"].double() if given["residual"] is None else given["x"].double() + given["residual"].double()
    rows = given["rows"].double()
    z = (x @ given["encoder"].double().T) * reference.input_scale(x, given["input_norm"]) + rows[:, Column.BIAS]
    at_threshold = (z - rows[:, Column.THRESHOLD]).abs() < margin
    at_gate = (rows[:, Column.SLOPE] * z + rows[:, Column.SHIFT]).abs() < margin
    return (at_threshold | at_gate).any(-1)


def edit_error(out, want, into):
    """||(out - w) - (want - w)|| / ||want - w||, and no row that should keep its bits may lose them."""
    out, into = out.double(), into.double()
    kept = (want == into).all(-1)
    assert torch.equal(out[kept], into[kept])
    assert torch.isfinite(out).all()
    size = (want - into).norm()
    return ((out - want).norm() / size).item() if size > 0 else 0.0


def half_ulp(want, dtype):
    """Half the distance between neighbours of ``want`` in a narrower type: what rounding the result may cost."""
    digits = {torch.float16: 11, torch.bfloat16: 8}[dtype]
    exponent = torch.frexp(want.abs().clamp(min=torch.finfo(dtype).tiny)).exponent
    return 0.5 * torch.ldexp(torch.ones_like(want), exponent - digits)


def rounding_excess(out, want, into):
    """By how much an element misses ``want`` beyond the rounding of its type, over the size of its row's edit."""
    miss = (out.double() - want).abs() - half_ulp(want, out.dtype)
    size = (want - into.double()).square().mean(-1, keepdim=True).sqrt()
    return torch.where(size > 0, miss / size, miss).max().item()
