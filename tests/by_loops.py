"""Every op once more in plain Python numbers, one token and one feature at a time: nothing shared with torch."""

import math

import torch

BIAS, THRESHOLD, SLOPE, SHIFT, FLOOR, C0, C1, C2, KNOT, GATE = range(10)
NONE, LAYER_NORM, CONSTANT_NORM = range(3)
ONE, STD, RMS, NORM, GAP_FILL = range(5)


def relu_rows(n, **columns):
    """A row table [n, 10] of ReLU features with the given columns set, for the ops under test."""
    rows = torch.zeros(n, 10, dtype=torch.float64)
    rows[:, THRESHOLD], rows[:, SLOPE] = -math.inf, 1
    for name, value in columns.items():
        rows[:, globals()[name]] = value
    return rows


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


def norm(x):
    return math.sqrt(dot(x, x))


def mean(x):
    return sum(x) / len(x)


def std(x):
    return math.sqrt(sum((v - mean(x)) ** 2 for v in x) / (len(x) - 1))


def normalised(x, input_norm):
    """What the encoder sees; rows of a layer_norm plan are centred, so the mean may stay."""
    if input_norm == LAYER_NORM:
        return [v / (std(x) + 1e-5) for v in x]
    if input_norm == CONSTANT_NORM:
        return [v * math.sqrt(len(x)) / norm(x) for v in x]
    return x


def activation(z, row):
    return max(row[SLOPE] * z + row[SHIFT], row[FLOOR]) if z > row[THRESHOLD] else 0.0


def delta(f, row):
    if row[GATE] and f <= 0:
        return 0.0
    return row[C0] + row[C1] * f + row[C2] * max(f - row[KNOT], 0.0)


def scale(x, deltas, rule, gap):
    total = sum(deltas)
    return {
        ONE: 1.0,
        STD: std(x),
        RMS: norm(x) / math.sqrt(len(x)),
        NORM: norm(x),
        GAP_FILL: gap / total if total else 0.0,
    }[rule]


def written(w, change, strength, preserve_norm):
    out = [a + strength * b for a, b in zip(w, change, strict=True)]
    if not preserve_norm or strength == 0:
        return out
    return [v * norm(w) / norm(out) for v in out]


def combination(weights, rows, bias):
    """sum_j weights_j rows_j + bias"""
    return [bias[i] + sum(weight * row[i] for weight, row in zip(weights, rows, strict=True)) for i in range(len(bias))]


def pre_activations(x, encoder, biases, input_norm):
    seen = normalised(x, input_norm)
    return [dot(row, seen) + bias for row, bias in zip(encoder, biases, strict=True)]


def steer(x, w, encoder, decoder, rows, bias, strength, input_norm, rule, gap, preserve_norm):
    """One token of ``steer``; bias is a list of zeros where the plan has none."""
    z = pre_activations(x, encoder, [row[BIAS] for row in rows], input_norm)
    deltas = [delta(activation(z_j, row), row) for z_j, row in zip(z, rows, strict=True)]
    return finish(x, w, deltas, decoder, bias, strength, rule, gap, preserve_norm)


def finish(x, w, deltas, decoder, bias, strength, rule, gap, preserve_norm):
    r = scale(x, deltas, rule, gap)
    change = [r * v for v in combination(deltas, decoder, bias)]
    return written(w, change, strength, preserve_norm)


def first(z, k):
    """The k features of the largest z, the lower index first among equals."""
    return sorted(range(len(z)), key=lambda i: (-z[i], i))[:k]


def steer_topk(x, w, encoder, biases, features, k, decoder, rows, bias, strength, input_norm, rule, gap, preserve_norm):
    z = pre_activations(x, encoder, biases, input_norm)
    active = first(z, k)
    f = [max(z[j], 0.0) if j in active else 0.0 for j in features]
    deltas = [delta(f_j, row) for f_j, row in zip(f, rows, strict=True)]
    return finish(x, w, deltas, decoder, bias, strength, rule, gap, preserve_norm)


def codes(x, encoder, rows, k, input_norm):
    """All activations of one token."""
    z = pre_activations(x, encoder, [row[BIAS] for row in rows], input_norm)
    active = first(z, k or len(z))
    return [activation(z_j, row) if j in active else 0.0 for j, (z_j, row) in enumerate(zip(z, rows, strict=True))]


def encode(x, encoder, rows, k, width, input_norm):
    f = codes(x, encoder, rows, k, input_norm)
    fired = sorted((j for j in range(len(f)) if f[j]), key=lambda j: (-f[j], j))
    shown = fired[:width]
    padding = width - len(shown)
    return [f[j] for j in shown] + [0.0] * padding, shown + [-1] * padding, len(fired)


def decode(values, indices, decoder, bias):
    kept = [(v, decoder[j]) for v, j in zip(values, indices, strict=True) if j >= 0]
    return combination([v for v, _ in kept], [row for _, row in kept], bias)


def steer_reconstruct(x, w, encoder, table, k, features, rows, decoder, bias, strength, input_norm, preserve_norm):
    f = codes(x, encoder, table, k, input_norm)
    for j, row in zip(features, rows, strict=True):
        if f[j]:
            f[j] += delta(f[j], row) - delta(0.0, row)
    out = combination(f, decoder, bias)
    if input_norm == LAYER_NORM:
        out = [v * std(x) + mean(x) for v in out]
    if input_norm == CONSTANT_NORM:
        out = [v * norm(x) / math.sqrt(len(x)) for v in out]
    return written(w, [a - b for a, b in zip(out, w, strict=True)], strength, preserve_norm)
