"""Random arguments of the ops that read a whole SAE or a bank, by name in the order of the op.

Whole numbers are the sharpest case: every sum of products is exact in any order and precision, so that ties are many
and a kernel must agree with the reference bit for bit, down to the order of equal activations.
"""

import math

import torch

from sparsesteer import reference
from sparsesteer._layout import N_COLUMNS, Column, InputNorm, OutputScale

ACTIVATIONS = ("relu", "jumprelu", "gated", "identity", "mixed")


def numbers(*shape, generator, whole, most=3):
    """fp64: whole numbers from -most to most, or normally distributed."""
    if whole:
        return torch.randint(-most, most + 1, shape, generator=generator).double()
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def activation_table(f, activation, generator, whole=False, density=0.2):
    """A row table [F, 10] without edits, under which about ``density`` of standard normal products fire."""
    table = torch.zeros(f, N_COLUMNS, dtype=torch.float64)
    cut = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 2 * density, dtype=torch.float64)).item()
    kinds = {name: i for i, name in enumerate(ACTIVATIONS[:4])}
    kind = torch.arange(f) % 4 if activation == "mixed" else torch.full((f,), kinds[activation])
    inf = math.inf
    table[:, Column.BIAS] = numbers(f, generator=generator, whole=whole, most=2) * (1.0 if whole else 0.1)
    table[:, Column.THRESHOLD] = torch.tensor([-inf, 2.0 if whole else cut, -1.0 if whole else cut / 2, -inf])[kind]
    table[:, Column.SLOPE] = torch.tensor([1.0, 1.0, 2.0, 1.0])[kind]
    table[:, Column.SHIFT] = torch.tensor([0.0, 0.0, 1.0, 0.0])[kind]
    table[:, Column.FLOOR] = torch.tensor([0.0, 0.0, 0.0, -inf])[kind]
    if not whole and activation in ("relu", "mixed"):
        table[kind == 0, Column.BIAS] -= cut
    return table


def edits(m, generator, scale_rule=OutputScale.ONE):
    """Columns C0 to GATE [M, 5]; every third edit is gated. Gap-fill gets relu(1.5 - f), whose sum does not cancel."""
    if scale_rule == OutputScale.GAP_FILL:
        return torch.tensor([1.5, -1.0, 1.0, 1.5, 0.0], dtype=torch.float64).expand(m, 5).clone()
    columns = torch.randn(m, 5, generator=generator, dtype=torch.float64)
    columns[:, 3] = columns[:, 3].abs()
    columns[:, 4] = (torch.arange(m) % 3 == 0).double()
    return columns


def encode_arguments(
    n, d, f, k=0, width=None, *, activation="relu", whole=False, dtype=torch.float32, row_dtype=torch.float32,
    input_norm=InputNorm.NONE, density=0.2, duplicates=False, device="cpu", seed=0,
):  # fmt: skip
    """Of ``encode``. duplicates: the second half of the features repeats the first, so that all z come in ties."""
    generator = torch.Generator().manual_seed(seed)
    x = numbers(n, d, generator=generator, whole=whole)
    encoder = numbers(f, d, generator=generator, whole=whole, most=2) / (1 if whole else math.sqrt(d))
    table = activation_table(f, activation, generator, whole, density)
    if input_norm == InputNorm.LAYER_NORM:
        encoder -= encoder.mean(-1, keepdim=True)
    if duplicates:
        half = f // 2
        encoder[half : 2 * half], table[half : 2 * half] = encoder[:half], table[:half]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    given = {
        "x": x.to(dtype),
        "encoder": encoder.to(compute if row_dtype == torch.float32 else row_dtype),
        "rows": table.to(compute),
    }
    given = {name: tensor.to(device) for name, tensor in given.items()}
    width = (k or f) if width is None else width
    return given | {"k": k, "width": width, "input_norm": int(input_norm)}


def _steering(n, d, given, generator, residual, token_strength, whole):
    """What the steering ops write to, and how much."""
    x = given["x"]

    def like_x(*shape):
        return numbers(*shape, generator=generator, whole=whole).to(x)

    strengths = None
    if token_strength:
        strengths = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
        strengths[1::3] = 0
        strengths = strengths.to(given["rows"])
    return {"into": like_x(n, d), "residual": like_x(n, d) if residual else None}, {
        "token_strength": strengths,
        "strength": 1.0 if token_strength else 0.75,
    }


def _chosen_features(f, m, generator):
    return torch.randperm(f, generator=generator)[:m].sort().values


def topk_arguments(
    n, d, f, m, k, *, features=None, residual=False, bias=False, token_strength=False, scale_rule=OutputScale.ONE,
    keep_norm=False, seed=0, **encoding,
):  # fmt: skip
    """Of ``steer_topk``; ``encoding`` as in ``encode_arguments``, its activation is ReLU."""
    base = encode_arguments(n, d, f, k, seed=seed, **encoding)
    generator = torch.Generator().manual_seed(seed + 1)
    features = _chosen_features(f, m, generator) if features is None else features
    table, encoder = base["rows"], base["encoder"]
    target, amount = _steering(n, d, base, generator, residual, token_strength, encoding.get("whole", False))
    rows = table[features.to(table.device)].clone()
    rows[:, Column.C0 :] = edits(len(features), generator, scale_rule).to(rows)
    decoder = numbers(len(features), d, generator=generator, whole=False) / math.sqrt(max(1, m))
    return {
        "x": base["x"],
        **target,
        "encoder": encoder,
        "encoder_bias": table[:, Column.BIAS],
        "features": features.to(encoder.device),
        "k": k,
        "decoder": decoder.to(encoder),
        "rows": rows,
        "delta_bias": torch.randn(d, generator=generator, dtype=torch.float64).to(table) if bias else None,
        **amount,
        "input_norm": base["input_norm"],
        "scale_rule": int(scale_rule),
        "gap": 1.5,
        "preserve_norm": keep_norm,
    }


def reconstruct_arguments(
    n, d, f, m, k=0, *, residual=False, token_strength=False, keep_norm=False, seed=0, **encoding
):
    """Of ``steer_reconstruct``; ``encoding`` as in ``encode_arguments``."""
    base = encode_arguments(n, d, f, k, seed=seed, **encoding)
    generator = torch.Generator().manual_seed(seed + 1)
    features = _chosen_features(f, m, generator)
    table, encoder = base["rows"], base["encoder"]
    target, amount = _steering(n, d, base, generator, residual, token_strength, encoding.get("whole", False))
    rows = table[features.to(table.device)].clone()
    rows[:, Column.C0 :] = edits(m, generator).to(rows)
    return {
        "x": base["x"],
        **target,
        "encoder": encoder,
        "table": table,
        "k": k,
        "features": features.to(encoder.device),
        "rows": rows,
        "decoder": (torch.randn(f, d, generator=generator, dtype=torch.float64) / math.sqrt(d)).to(encoder),
        "bias": torch.randn(d, generator=generator, dtype=torch.float64).to(table),
        **amount,
        "input_norm": base["input_norm"],
        "preserve_norm": keep_norm,
    }


def slots_arguments(
    n, d, r, sizes, slot=None, *, residual=False, token_strength=False, scale_rule=OutputScale.ONE, keep_norm=False,
    activation="mixed", seed=0, **encoding,
):  # fmt: skip
    """Of ``steer_slots``: a bank of r rows; ``sizes`` gives the number of entries of each slot, every other has a bias.

    slot: a list of N slots, or at random with some -1.
    """
    base = encode_arguments(n, d, r, 0, activation=activation, seed=seed, **encoding)
    generator = torch.Generator().manual_seed(seed + 1)
    device, table, encoder = base["x"].device, base["rows"], base["encoder"]
    target, amount = _steering(n, d, base, generator, residual, token_strength, encoding.get("whole", False))
    n_slots, n_entries = len(sizes), sum(sizes)
    first = torch.tensor([0, *sizes]).cumsum(0)[:-1]
    slots = torch.stack([first, torch.tensor(sizes), torch.arange(n_slots) % 2], 1).int()
    entry_row = torch.randint(r, (n_entries,), generator=generator).int().to(device)
    rows = table[entry_row.long()].clone()
    rows[:, Column.C0 :] = edits(n_entries, generator, scale_rule).to(rows)
    if slot is None:
        slot = torch.randint(-1, n_slots, (n,), generator=generator)
    decoder = torch.randn(r, d, generator=generator, dtype=torch.float64) / math.sqrt(max(1, *sizes))
    slot_bias = torch.randn(n_slots, d, generator=generator, dtype=torch.float64)
    slot_bias[slots[:, 2] == 0] = math.nan  # not to be read
    return {
        "x": base["x"],
        **target,
        "slot": torch.as_tensor(slot, dtype=torch.int32).to(device),
        "slots": slots.to(device),
        "encoder": encoder,
        "decoder": decoder.to(encoder),
        "entry_row": entry_row,
        "rows": rows,
        "slot_bias": slot_bias.to(table),
        **amount,
        "input_norm": base["input_norm"],
        "scale_rule": int(scale_rule),
        "gap": 1.5,
        "preserve_norm": keep_norm,
    }


def in_fp64(given):
    """The same arguments with every floating-point tensor in fp64."""
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }


def expected(op, given):
    """The reference's result in fp64."""
    return getattr(reference, op)(*in_fp64(given).values())


def pre_activations(given, table="rows"):
    """z [N, F] in fp64 of encode's or reconstruct's arguments."""
    wide = in_fp64(given)
    x = reference.read_input(wide["x"], wide.get("residual"))
    scale = reference.input_scale(x, given["input_norm"])
    return (x @ wide["encoder"].T) * scale + wide[table][:, Column.BIAS]


def clear_tokens(given, table="rows", margin=1e-5):
    """Tokens [N] whose active features do not depend on rounding: no z close to a jump or to the border of the k first.

    Whole numbers need no such care.
    """
    z, wide = pre_activations(given, table), in_fp64(given)
    rows = wide[table]
    at_jump = (z - rows[:, Column.THRESHOLD]).abs() < margin
    at_zero = (rows[:, Column.SLOPE] * z + rows[:, Column.SHIFT]).abs() < margin
    clear = ~(at_jump | at_zero).any(-1)
    k = given["k"]
    if 0 < k < z.shape[1]:
        falling = z.sort(-1, descending=True).values
        clear &= falling[:, k - 1] - falling[:, k] > margin
    return clear
