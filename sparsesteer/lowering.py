"""From an SAE's weights to the rows that kernels read: folding, and the tables of an edit."""

import math
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsesteer import weights
from sparsesteer._layout import N_COLUMNS, Column, InputNorm, OutputScale
from sparsesteer.activations import Gated, TopK
from sparsesteer.decoding import fold_decoder, stays_bf16
from sparsesteer.edits import Edit, FeatureEdit
from sparsesteer.naming import resolved
from sparsesteer.plans import SteeringPlan

if TYPE_CHECKING:
    from sparsesteer.activations import Activation
    from sparsesteer.sae import SAE

NORMALIZATIONS = {
    "none": (InputNorm.NONE, OutputScale.ONE),
    "layer_norm": (InputNorm.LAYER_NORM, OutputScale.STD),
    "constant_norm_rescale": (InputNorm.CONSTANT_NORM, OutputScale.RMS),
}
_BAND_ROWS = 4096


def lower(
    sae: "SAE", edit: Edit, activation: "Activation", reconstruct: bool, preserve_norm: bool, gap: float | None = None
) -> SteeringPlan:
    """The plan of an edit; of the SAE's matrices only the edited features' columns and rows are read."""
    changes = sorted(resolved(edit, sae).changes, key=lambda change: change.feature)
    constant = [change for change in changes if change.is_constant()]
    encoded = [change for change in changes if not change.is_constant()]
    features = _features(encoded, sae)
    rows = weights.columns(sae.W_enc, features)
    weights.check_finite_rows("W_enc", sae.W_enc, rows, features)
    encoder, bias = (part.to(_dtype(sae)) for part in fold_encoder(sae, rows, features))
    table = activation.table(features, bias, sae.d_sae)
    table[:, Column.C0 :] = _edit_columns(encoded, table)
    input_norm, scale_rule = NORMALIZATIONS[sae.normalize]
    if sae.transcoder:
        scale_rule = OutputScale.ONE  # the scale of what is read is none of what is written
    if gap is not None:
        _check_gap(sae, gap, constant, reconstruct)
        scale_rule = OutputScale.GAP_FILL
    k = activation.k if isinstance(activation, TopK) else 0
    return SteeringPlan(
        encoder=encoder,
        decoder=_decoder_rows(sae, features),
        rows=table,
        features=features,
        constant_features=_features(constant, sae),
        delta_bias=_constant_part(sae, constant),
        input_norm=input_norm,
        scale_rule=scale_rule,
        gap=0.0 if gap is None else float(gap),
        preserve_norm=preserve_norm,
        k=k,
        reconstruct=reconstruct,
        site=sae.site,
        sae_digest=sae.digest,
        sae=sae if reconstruct or (k and encoded) else None,
    )


def _check_gap(sae: "SAE", gap: float, constant: list[FeatureEdit], reconstruct: bool) -> None:
    """Raises ValueError where r is taken already, or what it would share out is not a sum over encoded features."""
    if isinstance(gap, bool) or not isinstance(gap, Real) or not math.isfinite(gap):
        raise ValueError(f"SAE.plan: gap should be a finite number, got {gap!r}")
    if sae.normalize != "none" and not sae.transcoder:
        raise ValueError(f"SAE.plan: gap needs the one scale that undoing normalize={sae.normalize!r} takes already")
    if constant or reconstruct:
        what = "reconstruct" if reconstruct else f"the constant edit of feature {constant[0].feature}"
        raise ValueError(f"SAE.plan: gap is shared out among encoded features; {what} does not go with it")


def fold_encoder(sae: "SAE", rows: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Encoder rows [M, D] and biases [M] with b_dec, decoder norms and layer_norm's centring folded in."""
    rows = weights.at_least_fp32(rows)
    if isinstance(sae.activation, Gated):
        bias = rows.new_zeros(len(features), dtype=torch.float64)
    else:
        bias = sae.b_enc[features].double()
    if sae.apply_b_dec_to_input:
        b_dec = sae.b_dec.double()
        bias = bias - torch.cat([band.double() @ b_dec for band in rows.split(_BAND_ROWS)])
    if sae.rescale_acts_by_decoder_norm:
        norms = weights.at_least_fp32(weights.rows(sae.W_dec, features)).norm(dim=-1)
        rows, bias = rows * norms[:, None], bias * norms.double()
    if sae.normalize == "layer_norm":
        rows = rows - rows.mean(-1, keepdim=True)
    return rows, bias.to(rows.dtype)


def whole_encoder(sae: "SAE", dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every feature's encoder row [F, D] and bias [F], in ``dtype``; bf16 weights that nothing is folded into stay."""
    columns = weights.whole("W_enc", sae.W_enc)
    rows, bias = fold_encoder(sae, columns.T, torch.arange(sae.d_sae, device=sae.device))
    return columns.T if stays_bf16(sae, dtype) else rows.to(dtype), bias.to(dtype)


def _features(changes: list[FeatureEdit], sae: "SAE") -> Tensor:
    return torch.tensor([c.feature for c in changes], dtype=torch.int64, device=sae.device)


def _decoder_rows(sae: "SAE", features: Tensor) -> Tensor:
    rows = weights.rows(sae.W_dec, features)
    weights.check_finite_rows("W_dec", sae.W_dec, rows, features)
    return fold_decoder(sae, rows).to(_dtype(sae))


def _dtype(sae: "SAE") -> torch.dtype:
    """Of a plan's rows: fp64 where one of the matrices is, else fp32."""
    return torch.float64 if torch.float64 in (sae.W_enc.dtype, sae.W_dec.dtype) else torch.float32


def _edit_columns(changes: list[FeatureEdit], table: Tensor) -> Tensor:
    """Columns C0 to GATE of a row table, [M, 5]."""
    values = [(c.c0, c.c1, c.c2, c.knot, float(c.when_active)) for c in changes]
    columns = torch.tensor(values, dtype=table.dtype, device=table.device)
    return _representable(columns.view(len(changes), N_COLUMNS - Column.C0))


def _constant_part(sae: "SAE", changes: list[FeatureEdit]) -> Tensor | None:
    """The sum of all constant edits [D]; None if there is none, so that no token is touched."""
    changes = [c for c in changes if c.c0 != 0]
    if not changes:
        return None
    rows = _decoder_rows(sae, _features(changes, sae))
    values = torch.tensor([c.c0 for c in changes], dtype=torch.float64, device=rows.device)
    return _representable((values @ rows.double()).to(rows.dtype))


def _representable(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise ValueError(f"SAE.plan: the edit's values are too large for {values.dtype}")
    return values
