"""A sparse autoencoder: weights, activation, normalisation, provenance; and how edits become a plan."""

import hashlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsesteer import reference
from sparsesteer._layout import Column, InputNorm, OutputScale
from sparsesteer.activations import Activation, Gated, Slots, TopK
from sparsesteer.edits import Edit
from sparsesteer.plans import SteeringPlan
from sparsesteer.site import Site
from sparsesteer.storage import StoredTensor

if TYPE_CHECKING:
    import os

NORMALIZATIONS = {
    "none": (InputNorm.NONE, OutputScale.ONE),
    "layer_norm": (InputNorm.LAYER_NORM, OutputScale.STD),
    "constant_norm_rescale": (InputNorm.CONSTANT_NORM, OutputScale.RMS),
}
_DIGEST_ROWS = 16


class SAE:
    """Sparse autoencoder f = act((norm(x) - b_dec) W_enc + b_enc), x ~ denorm(f W_dec + b_dec).

    Args:
        W_enc: [D, F]; a tensor, or a stored one of which plans read only the columns they need.
        W_dec: [F, D].
        b_enc: [F], zeros if not given (``Gated`` has its own biases and takes none).
        b_dec: [D], zeros if not given.
        activation: ``ReLU()``, ``JumpReLU(threshold)``, ``TopK(k)``, ``Gated(...)``, ``Identity()``, ``Slots(...)``.
        normalize: "none", "layer_norm" or "constant_norm_rescale", applied to each token as SAELens does.
        apply_b_dec_to_input: subtract b_dec before encoding.
        rescale_acts_by_decoder_norm: activations (and TopK's ranks) in units of each decoder row's norm.
        feature_maximum: [F], each feature's largest activation on the SAE's corpus, where known.

    Raises:
        ValueError: shapes that disagree, NaN or infinite weights, an unknown normalisation.
        TypeError: integer weights.
    """

    def __init__(
        self,
        *,
        W_enc: Tensor | StoredTensor,
        W_dec: Tensor | StoredTensor,
        b_enc: Tensor | None = None,
        b_dec: Tensor | None = None,
        activation: Activation,
        normalize: str = "none",
        apply_b_dec_to_input: bool = True,
        rescale_acts_by_decoder_norm: bool = False,
        site: Site | None = None,
        feature_maximum: Tensor | None = None,
    ) -> None:
        _check_matrices(W_enc, W_dec)
        width, n_features = W_enc.shape
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"SAE: normalize should be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
        if isinstance(activation, Gated) and b_enc is not None and bool((b_enc != 0).any()):
            raise ValueError("SAE: a gated SAE has b_gate and b_mag in place of b_enc; leave b_enc out")
        if not isinstance(activation, Activation):
            raise TypeError(f"SAE: activation should be ss.ReLU(), ss.TopK(k), ..., got {activation!r}")
        self.W_enc, self.W_dec = W_enc, W_dec
        self.b_enc = torch.zeros(n_features) if b_enc is None else b_enc
        self.b_dec = torch.zeros(W_dec.shape[1]) if b_dec is None else b_dec
        for name, bias, length in (("b_enc", self.b_enc, n_features), ("b_dec", self.b_dec, W_dec.shape[1])):
            if tuple(bias.shape) != (length,):
                raise ValueError(f"SAE: {name} should have shape [{length}], got {list(bias.shape)}")
            _check_finite(name, bias)
        for name, matrix in (("W_enc", W_enc), ("W_dec", W_dec)):
            if isinstance(matrix, Tensor):
                _check_finite(name, matrix)
        if isinstance(activation, Slots):
            activation = replace(activation, n_features=n_features)
        activation.check(n_features)
        self.activation = activation
        self.normalize = normalize
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.rescale_acts_by_decoder_norm = rescale_acts_by_decoder_norm
        self.site = site or Site()
        self.feature_maximum = feature_maximum
        self._digest: str | None = None
        self._whole_encoder: tuple[Tensor, Tensor] | None = None
        self._whole_decoder: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def load_from_disk(path: "str | os.PathLike") -> "SAE":
        """Read an SAE folder (``loaders.load_from_disk``); large matrices stay on disk until they are needed."""
        from sparsesteer import loaders

        return loaders.load_from_disk(path)

    @staticmethod
    def from_pretrained(release: str, sae_id: str) -> "SAE":
        """Download a published SAE through sae-lens (``loaders.from_pretrained``)."""
        from sparsesteer import loaders

        return loaders.from_pretrained(release, sae_id)

    @staticmethod
    def from_saelens(sae: Any) -> "SAE":
        """Take over a live sae_lens object (``loaders.from_saelens``); its tensors are shared, not copied."""
        from sparsesteer import loaders

        return loaders.from_saelens(sae)

    @property
    def d_in(self) -> int:
        """D, the model width."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """F, the number of features."""
        return self.W_enc.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are; stored weights count as on the CPU."""
        return self.b_enc.device

    def __repr__(self) -> str:
        kind = f"TopK({self.activation.k})" if isinstance(self.activation, TopK) else type(self.activation).__name__
        return f"SAE(D={self.d_in}, F={self.d_sae}, {kind}, normalize={self.normalize!r}, {self.site})"

    def to(self, device: torch.device | str) -> "SAE":
        """The SAE on another device; itself if it is there already."""
        if torch.device(device) == self.device:
            return self
        activation = replace(
            self.activation,
            **{name: value.to(device) for name, value in vars(self.activation).items() if isinstance(value, Tensor)},
        )
        moved = SAE.__new__(SAE)
        moved.__dict__.update(self.__dict__)
        moved.activation = activation
        moved.W_enc, moved.W_dec = _whole(self.W_enc).to(device), _whole(self.W_dec).to(device)
        moved.b_enc, moved.b_dec = self.b_enc.to(device), self.b_dec.to(device)
        moved._whole_encoder = moved._whole_decoder = None
        return moved

    def encode(self, h: Tensor) -> Tensor:
        """All activations f [..., F] of h [..., D], dense, in the units of SAELens's ``hook_sae_acts_post``."""
        self._check_width(h)
        encoder, table = self.whole_encoder()
        x = reference.read_input(h.reshape(-1, self.d_in), None)
        k = self.activation.k if isinstance(self.activation, TopK) else 0
        f = reference.dense_codes(x, encoder, table, k, NORMALIZATIONS[self.normalize][0])
        return f.view(*h.shape[:-1], self.d_sae).to(h.dtype)

    def decode(self, f: Tensor, like: Tensor | None = None) -> Tensor:
        """Reconstruction [..., D] of activations f [..., F].

        Args:
            like: the tensor [..., D] that was encoded, whose mean and scale a normalising SAE gives back.
        """
        if like is None and self.normalize != "none":
            raise ValueError(f"SAE.decode: normalize={self.normalize!r} needs the encoded tensor: decode(f, like=h)")
        decoder, bias = self.whole_decoder()
        out = f.to(decoder.dtype) @ decoder + bias
        if like is not None and self.normalize == "layer_norm":
            out = out * like.std(-1, keepdim=True) + like.mean(-1, keepdim=True)
        elif like is not None and self.normalize == "constant_norm_rescale":
            out = out * like.norm(dim=-1, keepdim=True) / math.sqrt(self.d_in)
        return out.to(f.dtype)

    def plan(
        self,
        edit: Edit,
        *,
        activation: Activation | None = None,
        reconstruct: bool = False,
        preserve_norm: bool = False,
    ) -> SteeringPlan:
        """Lower an edit to the tables that ``ops.steer`` reads.

        Args:
            activation: use another activation than the SAE's own, e.g. ``ReLU()`` without TopK's mask.
            reconstruct: replace the tensor by its edited reconstruction, dropping the SAE's error.
            preserve_norm: give every edited token the length it had.

        Raises:
            ValueError: a feature that the SAE does not have, NaN or infinite weights in an edited row.
        """
        if not isinstance(edit, Edit):
            raise TypeError(f"SAE.plan takes an Edit, got {type(edit).__name__}; write Edit.set({{feature: value}})")
        for feature in edit.features:
            if feature >= self.d_sae:
                raise ValueError(f"SAE.plan: feature {feature} is out of range, this SAE has 0 to {self.d_sae - 1}")
        activation = self.activation if activation is None else activation
        if isinstance(activation, Slots) and activation.n_features is None:
            activation = replace(activation, n_features=self.d_sae)
        activation.check(self.d_sae)
        live = [c for c in edit.changes if not c.is_constant()]
        constant = [c for c in edit.changes if c.is_constant() and c.c0 != 0]
        features = torch.tensor([c.feature for c in live], dtype=torch.int64)
        encoder, bias = self._encoder_rows(features)
        rows = activation.table(features, bias)
        for i, change in enumerate(live):
            rows[i, Column.C0 : Column.GATE] = torch.tensor([change.c0, change.c1, change.c2, change.knot])
            rows[i, Column.GATE] = float(change.when_active)
        input_norm, scale_rule = NORMALIZATIONS[self.normalize]
        k = activation.k if isinstance(activation, TopK) and (live or reconstruct) else 0
        plan = SteeringPlan(
            encoder=encoder,
            decoder=self._decoder_rows(features),
            rows=rows,
            features=features,
            delta_bias=self._constant_part(constant),
            input_norm=input_norm,
            scale_rule=scale_rule,
            preserve_norm=preserve_norm,
            k=k,
            reconstruct=reconstruct,
            site=self.site,
            sae_digest=self.digest,
            sae=self if reconstruct or k else None,
        )
        return plan.to(self.device) if self.device.type != "cpu" else plan

    @property
    def digest(self) -> str:
        """SHA-256 over shapes, rules, all biases and thresholds, and evenly spaced rows of both matrices.

        The same for an SAE in memory and on disk, without reading a file of gigabytes.
        """
        if self._digest is None:
            sha = hashlib.sha256()
            rules = (self.normalize, self.apply_b_dec_to_input, self.rescale_acts_by_decoder_norm)
            sha.update(repr((self.d_in, self.d_sae, type(self.activation).__name__, rules)).encode())
            values = [v for _, v in sorted(vars(self.activation).items()) if not isinstance(v, Activation)]
            for value in (*values, self.b_enc, self.b_dec):
                sha.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
            for matrix in (self.W_enc, self.W_dec):
                sha.update(_bytes(_rows(matrix, torch.linspace(0, matrix.shape[0] - 1, _DIGEST_ROWS).long())))
            self._digest = sha.hexdigest()
        return self._digest

    def whole_encoder(self) -> tuple[Tensor, Tensor]:
        """(encoder rows [F, D], row table [F, 10] without edits) of every feature, for ops that need them all."""
        if self._whole_encoder is None:
            self._whole_encoder = self._fold(_whole(self.W_enc).T, torch.arange(self.d_sae))
        encoder, bias = self._whole_encoder
        return encoder, self.activation.table(torch.arange(self.d_sae), bias)

    def whole_decoder(self) -> tuple[Tensor, Tensor]:
        """(decoder rows [F, D], bias [D]) such that the reconstruction is f @ rows + bias."""
        if self._whole_decoder is None:
            decoder = _compute(_whole(self.W_dec))
            if self.rescale_acts_by_decoder_norm:
                decoder = decoder / decoder.norm(dim=-1, keepdim=True)
            self._whole_decoder = decoder, _compute(self.b_dec)
        return self._whole_decoder

    def _encoder_rows(self, features: Tensor) -> tuple[Tensor, Tensor]:
        rows = _columns(self.W_enc, features)
        _check_finite("W_enc", rows, features)
        return self._fold(rows, features)

    def _fold(self, rows: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder rows [M, D] and biases [M] with b_dec, decoder norms and layer_norm's centring folded in."""
        rows = _compute(rows)
        bias = torch.zeros(len(features), dtype=torch.float64, device=rows.device)
        if not isinstance(self.activation, Gated):
            bias = self.b_enc[features].double()
        if self.apply_b_dec_to_input and bool((self.b_dec != 0).any()):
            bias = bias - (rows @ _compute(self.b_dec).to(rows.dtype)).double() if len(features) > 4096 else (
                bias - rows.double() @ self.b_dec.double()
            )
        if self.rescale_acts_by_decoder_norm:
            norms = self._decoder_norms(features)
            rows, bias = rows * norms[:, None], bias * norms.double()
        if self.normalize == "layer_norm":
            rows = rows - rows.mean(-1, keepdim=True)
        return rows, bias.to(rows.dtype)

    def _decoder_norms(self, features: Tensor) -> Tensor:
        return _compute(_rows(self.W_dec, features)).norm(dim=-1)

    def _decoder_rows(self, features: Tensor) -> Tensor:
        rows = _compute(_rows(self.W_dec, features))
        _check_finite("W_dec", rows, features)
        if self.rescale_acts_by_decoder_norm:
            rows = rows / rows.norm(dim=-1, keepdim=True)
        return rows

    def _constant_part(self, changes: list) -> Tensor | None:
        if not changes:
            return None
        rows = self._decoder_rows(torch.tensor([c.feature for c in changes]))
        values = torch.tensor([c.c0 for c in changes], dtype=torch.float64, device=rows.device)
        return (values @ rows.double()).to(rows.dtype)

    def _check_width(self, h: Tensor) -> None:
        if not h.is_floating_point():
            raise TypeError(f"SAE: h should be a floating point tensor, got {h.dtype}")
        if h.dim() == 0 or h.shape[-1] != self.d_in:
            raise ValueError(f"SAE: h should have shape [..., {self.d_in}], got {list(h.shape)}")


def _check_matrices(W_enc: Tensor | StoredTensor, W_dec: Tensor | StoredTensor) -> None:
    for name, matrix in (("W_enc", W_enc), ("W_dec", W_dec)):
        if len(matrix.shape) != 2 or 0 in matrix.shape:
            raise ValueError(f"SAE: {name} should be a matrix, got shape {list(matrix.shape)}")
        if not matrix.dtype.is_floating_point:
            raise TypeError(f"SAE: {name} should be floating point, got {matrix.dtype}")
    if tuple(W_dec.shape) != (W_enc.shape[1], W_enc.shape[0]):
        raise ValueError(
            f"SAE: W_enc is [D, F] and W_dec is [F, D]; got {list(W_enc.shape)} and {list(W_dec.shape)}, "
            "which disagree (is one of them transposed?)"
        )


def _check_finite(name: str, tensor: Tensor, features: Tensor | None = None) -> None:
    # a sum is finite unless a term is not (or it overflows), and needs no mask of the tensor's size
    if math.isfinite(tensor.sum(dtype=torch.float64).item()) if tensor.numel() else True:
        return
    bad = (~torch.isfinite(tensor)).nonzero()
    if len(bad):
        where = bad[0].tolist()
        if features is not None:
            where[0] = int(features[where[0]])
        raise ValueError(f"SAE: {name} has NaN or infinite values, the first at {where}; the file may be damaged")


def _compute(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _whole(matrix: Tensor | StoredTensor) -> Tensor:
    if isinstance(matrix, StoredTensor):
        loaded = matrix.load()
        _check_finite(matrix.path.name, loaded)
        return loaded
    return matrix


def _rows(matrix: Tensor | StoredTensor, indices: Tensor) -> Tensor:
    return matrix.rows(indices) if isinstance(matrix, StoredTensor) else matrix[indices.to(matrix.device)]


def _columns(matrix: Tensor | StoredTensor, indices: Tensor) -> Tensor:
    """Columns as contiguous rows [M, height]."""
    if isinstance(matrix, StoredTensor):
        return matrix.columns(indices)
    return matrix[:, indices.to(matrix.device)].T.contiguous()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().float().contiguous().numpy().tobytes()
