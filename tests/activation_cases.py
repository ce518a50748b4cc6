"""Arguments of ``activations`` and ``activations_topk`` by name, and the edit that shows what ``steer`` sees."""

import torch

from sparsesteer._layout import Column, OutputScale

ROWS = ("x", "residual", "encoder", "rows", "input_norm")
WHOLE = ("x", "residual", "encoder", "encoder_bias", "features", "k", "rows", "input_norm")


def activation_arguments(steering):
    """Of the op without an edit, from those of ``steer`` or ``steer_topk``."""
    return {name: steering[name] for name in (WHOLE if "features" in steering else ROWS)}


def showing(steering):
    """The same call with an edit whose result is f itself: d = f, written by an identity into zeros."""
    n, m = len(steering["x"]), len(steering["rows"])
    rows = steering["rows"].clone()
    rows[:, Column.C0 :] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]).to(rows)
    return steering | {
        "into": steering["x"].new_zeros(n, m),
        "decoder": torch.eye(m).to(steering["decoder"]),
        "rows": rows,
        "delta_bias": None,
        "token_strength": None,
        "strength": 1.0,
        "scale_rule": int(OutputScale.ONE),
        "preserve_norm": False,
    }
