"""Every op of the package: schema, shape function, gradient. Importing this module defines them, once.

The plain torch implementation is registered for all backends; the extension overrides it for CPU tensors
(``csrc/registration.cpp``) and ``_dispatch`` for CUDA tensors.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsesteer import reference
from sparsesteer._gradients import recompute_gradient, save_inputs, steer_backward
from sparsesteer._layout import N_COLUMNS

_TARGET = "Tensor x, Tensor into, Tensor? residual"
_AMOUNT = "Tensor? token_strength, float strength"
_SCALES = "int input_norm, int scale_rule, float gap, bool preserve_norm"

STEER = f"{_TARGET}, Tensor encoder, Tensor decoder, Tensor rows, Tensor? delta_bias, {_AMOUNT}, {_SCALES}"

STEER_SLOTS = (
    f"{_TARGET}, Tensor slot, Tensor slots, Tensor encoder, Tensor decoder, Tensor entry_row, Tensor rows, "
    f"Tensor slot_bias, {_AMOUNT}, {_SCALES}"
)
_CODES = "int k, int width, int input_norm) -> (Tensor, Tensor, Tensor)"

SCHEMAS = {
    "steer": f"({STEER}) -> Tensor",
    "steer_out": f"({STEER}, *, Tensor(a!) out) -> ()",
    "steer_topk": (
        f"({_TARGET}, Tensor encoder, Tensor encoder_bias, Tensor features, int k, Tensor decoder, Tensor rows, "
        f"Tensor? delta_bias, {_AMOUNT}, {_SCALES}) -> Tensor"
    ),
    "steer_reconstruct": (
        f"({_TARGET}, Tensor encoder, Tensor table, int k, Tensor features, Tensor rows, Tensor decoder, Tensor bias, "
        f"{_AMOUNT}, int input_norm, bool preserve_norm) -> Tensor"
    ),
    "activations": "(Tensor x, Tensor? residual, Tensor encoder, Tensor rows, int input_norm) -> Tensor",
    "activations_topk": (
        "(Tensor x, Tensor? residual, Tensor encoder, Tensor encoder_bias, Tensor features, int k, Tensor rows, "
        "int input_norm) -> Tensor"
    ),
    "encode": f"(Tensor x, Tensor encoder, Tensor rows, {_CODES}",
    "encode_screened": (
        f"(Tensor x, Tensor encoder, Tensor rows, Tensor screen, Tensor screen_scale, Tensor screen_error, {_CODES}"
    ),
    "decode": "(Tensor values, Tensor indices, Tensor decoder, Tensor bias) -> Tensor",
    "steer_slots": f"({STEER_SLOTS}) -> Tensor",
    "steer_slots_out": f"({STEER_SLOTS}, *, Tensor(a!) out) -> ()",
}

STEER_ARGUMENTS = (
    "x", "into", "residual", "encoder", "decoder", "rows", "delta_bias", "token_strength",
    "strength", "input_norm", "scale_rule", "gap", "preserve_norm",
)  # fmt: skip
_TENSORS = STEER_ARGUMENTS[:8]

LIBRARY = torch.library.Library("sparsesteer", "DEF")


def check_steer_shapes(x, into, residual, encoder, decoder, rows, delta_bias, token_strength) -> None:
    """The shape contract of ``steer``, for real and for fake tensors."""
    n, width = x.shape
    out_width = into.shape[1]
    m = encoder.shape[0]
    for name, tensor, want in (
        ("into", into, (n, out_width)),
        ("residual", residual, (n, width)),
        ("encoder", encoder, (m, width)),
        ("decoder", decoder, (m, out_width)),
        ("rows", rows, (m, N_COLUMNS)),
        ("delta_bias", delta_bias, (out_width,)),
        ("token_strength", token_strength, (n,)),
    ):
        if tensor is not None:
            torch._check(
                tuple(tensor.shape) == want,
                lambda name=name, tensor=tensor, want=want: (
                    f"steer: {name} should have shape {list(want)}, got {list(tensor.shape)}"
                ),
            )


def _written_to(op: Callable[..., Tensor]) -> Callable[..., None]:
    """The form of an op that writes its result to ``out``."""

    def run(*args: object, out: Tensor) -> None:
        out.copy_(op(*args))

    return run


def _like_into(x: Tensor, into: Tensor, *rest: object) -> Tensor:
    return into.new_empty(into.shape)


def _steer_fake(x, into, residual, encoder, decoder, rows, delta_bias, token_strength, *scalars):
    check_steer_shapes(x, into, residual, encoder, decoder, rows, delta_bias, token_strength)
    return into.new_empty(into.shape)


def _steer_out_fake(*args, out) -> None:
    _steer_fake(*args)


def _activations_fake(x, residual, encoder, *rest):
    rows = rest[-2]
    return x.new_empty(x.shape[0], rows.shape[0], dtype=reference.compute_dtype(x))


def _encode_fake(x, encoder, rows, *rest):
    width = rest[-2]
    shape = (x.shape[0], width)
    return (
        x.new_empty(shape, dtype=reference.compute_dtype(x)),
        x.new_empty(shape, dtype=torch.int32),
        x.new_empty(x.shape[:1], dtype=torch.int32),
    )


def _slots_out_fake(*args, out) -> None:
    return None


def _decode_fake(values, indices, decoder, bias):
    return values.new_empty(values.shape[0], decoder.shape[1])


FAKES: dict[str, Callable] = {
    "steer": _steer_fake,
    "steer_out": _steer_out_fake,
    "steer_topk": _like_into,
    "steer_reconstruct": _like_into,
    "activations": _activations_fake,
    "activations_topk": _activations_fake,
    "encode": _encode_fake,
    "encode_screened": _encode_fake,
    "decode": _decode_fake,
    "steer_slots": _like_into,
    "steer_slots_out": _slots_out_fake,
}


def _save_steer(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[: len(_TENSORS)])
    ctx.scalars = inputs[len(_TENSORS) :]


def _steer_gradient(ctx, grad):
    gradients = steer_backward(grad, *ctx.saved_tensors, *ctx.scalars)
    return *(gradients[name] for name in _TENSORS), *(None for _ in ctx.scalars)


def _define() -> None:
    for name, schema in SCHEMAS.items():
        LIBRARY.define(name + schema)
        plain = getattr(reference, name.removesuffix("_out"))
        implementation = _written_to(plain) if name.endswith("_out") else plain
        LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sparsesteer::{name}", FAKES[name], lib=LIBRARY)
    torch.library.register_autograd("sparsesteer::steer", _steer_gradient, setup_context=_save_steer, lib=LIBRARY)
    for name in (
        "steer_topk",
        "steer_reconstruct",
        "encode",
        "encode_screened",
        "decode",
        "steer_slots",
        "activations",
        "activations_topk",
    ):
        backward = recompute_gradient(getattr(reference, name))
        torch.library.register_autograd(f"sparsesteer::{name}", backward, setup_context=save_inputs, lib=LIBRARY)


_define()
