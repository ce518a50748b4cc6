"""A sparse autoencoder: weights, activation, normalisation, provenance."""

import copy
import os
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from sparsesteer import ops, reference, weights
from sparsesteer._layout import InputNorm
from sparsesteer.activations import Activation, Gated, TopK
from sparsesteer.digest import digest_of
from sparsesteer.edits import Edit
from sparsesteer.explanations import Explanations
from sparsesteer.lowering import NORMALIZATIONS, fold_decoder, fold_encoder, lower
from sparsesteer.ops import SparseCodes
from sparsesteer.plans import SteeringPlan
from sparsesteer.screen import Screen
from sparsesteer.site import Site
from sparsesteer.weights import Matrix


class SAE:
    """Sparse autoencoder f = act((norm(x) - b_dec) W_enc + b_enc), x ~ denorm(f W_dec + b_dec).

    Weights are constants: shared with the caller, never copied, no gradient flows to them.

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
        TypeError: integer weights, something else than an activation.
    """

    explanations: Explanations | None = None  # words by which edits can name features

    def __init__(
        self,
        *,
        W_enc: Matrix,
        W_dec: Matrix,
        b_enc: Tensor | None = None,
        b_dec: Tensor | None = None,
        activation: Activation,
        normalize: str = "none",
        apply_b_dec_to_input: bool = True,
        rescale_acts_by_decoder_norm: bool = False,
        site: Site | None = None,
        feature_maximum: Tensor | None = None,
    ) -> None:
        weights.check_matrices(W_enc, W_dec)
        width, n_features = W_enc.shape
        device = weights.device_of(W_enc)
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"SAE: normalize should be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
        _check_activation(activation, n_features)
        if isinstance(activation, Gated) and b_enc is not None and b_enc.any():
            raise ValueError("SAE: a gated SAE has b_gate and b_mag in place of b_enc; leave b_enc out")
        b_enc = torch.zeros(n_features) if b_enc is None else b_enc
        b_dec = torch.zeros(width) if b_dec is None else b_dec
        weights.check_vector("b_enc", b_enc, n_features)
        weights.check_vector("b_dec", b_dec, width)
        if feature_maximum is not None:
            weights.check_vector("feature_maximum", feature_maximum, n_features)
            feature_maximum = feature_maximum.to(device)
        self.W_enc, self.W_dec = weights.constant(W_enc), weights.constant(W_dec)
        self.b_enc, self.b_dec = b_enc.detach().to(device), b_dec.detach().to(device)
        self.activation = activation.to(device)
        self.normalize = normalize
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.rescale_acts_by_decoder_norm = rescale_acts_by_decoder_norm
        self.site = site or Site()
        self.feature_maximum = feature_maximum
        self._forget()

    def _forget(self) -> None:
        """Drop what was computed from the weights."""
        self.screen: Screen | None = None
        self._digest: str | None = None
        self._tables: dict[torch.dtype, Tensor] = {}
        self._encoders: dict[torch.dtype, Tensor] = {}
        self._decoders: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        self._elsewhere: WeakValueDictionary[torch.device, SAE] = WeakValueDictionary()

    @staticmethod
    def load_from_disk(path: str | os.PathLike) -> "SAE":
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
    def k(self) -> int:
        """Active features of a token at most, where the activation is ``TopK``; 0 for every other."""
        return self.activation.k if isinstance(self.activation, TopK) else 0

    @property
    def input_norm(self) -> InputNorm:
        """The run-time normalisation of what is encoded."""
        return NORMALIZATIONS[self.normalize][0]

    @property
    def device(self) -> torch.device:
        """Where the weights are; stored weights count as on the CPU."""
        return self.b_enc.device

    def __repr__(self) -> str:
        kind = f"TopK({self.activation.k})" if isinstance(self.activation, TopK) else type(self.activation).__name__
        return f"SAE(D={self.d_in}, F={self.d_sae}, {kind}, normalize={self.normalize!r}, {self.site})"

    def to(self, device: torch.device | str) -> "SAE":
        """The SAE on another device, itself if it is there already; the same copy as long as one is alive."""
        device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
        if device == self.device:
            return self
        moved = self._elsewhere.get(device)
        if moved is None:
            moved = copy.copy(self)
            moved._forget()
            moved._digest = self._digest
            moved.W_enc = weights.whole("W_enc", self.W_enc).to(device)
            moved.W_dec = weights.whole("W_dec", self.W_dec).to(device)
            moved.b_enc, moved.b_dec = self.b_enc.to(device), self.b_dec.to(device)
            moved.activation = self.activation.to(device)
            if self.feature_maximum is not None:
                moved.feature_maximum = self.feature_maximum.to(device)
            self._elsewhere[device] = moved
        return moved

    def with_activation(self, activation: Activation) -> "SAE":
        """The same weights, shared, under another activation, e.g. ``ReLU()`` without TopK's mask."""
        _check_activation(activation, self.d_sae)
        other = copy.copy(self)
        other._forget()
        other.activation = activation.to(self.device)
        other._encoders, other._decoders, other.screen = self._encoders, self._decoders, self.screen
        return other

    def encode(self, h: Tensor) -> Tensor:
        """All activations f [..., F] of h [..., D], dense, in the units of SAELens's ``hook_sae_acts_post``."""
        _check_last("encode", "h", h, self.d_in)
        x = reference.read_input(h.reshape(-1, self.d_in), None)
        encoder, table = self.whole_encoder(x.dtype)
        f = reference.dense_codes(x, encoder, table, self.k, self.input_norm)
        return f.view(*h.shape[:-1], self.d_sae).to(h.dtype)

    def encode_sparse(self, h: Tensor, k: int | None = None) -> SparseCodes:
        """The active features of every token of h [..., D], without a tensor of all features (``ops.encode``)."""
        return ops.encode(h, self, k)

    def decode(self, f: Tensor | SparseCodes, like: Tensor | None = None) -> Tensor:
        """Reconstruction [..., D] of activations, dense [..., F] or sparse.

        Args:
            like: the tensor [..., D] that was encoded, whose mean and scale a normalising SAE gives back.
        """
        if isinstance(f, SparseCodes):
            return ops.decode(f, self, like)
        _check_last("decode", "f", f, self.d_sae)
        decoder, bias = self.whole_decoder(torch.promote_types(f.dtype, torch.float32))
        out = f.to(bias.dtype) @ decoder.to(bias.dtype) + bias
        return self.denormalize(out, like).to(f.dtype)

    def denormalize(self, out: Tensor, like: Tensor | None) -> Tensor:
        """A reconstruction [..., D] at the scale (and mean) of ``like`` [..., D], the tensor that was encoded."""
        if self.normalize == "none":
            return out
        if like is None:
            raise ValueError(f"SAE.decode: normalize={self.normalize!r} needs the encoded tensor: decode(f, like=h)")
        _check_last("decode", "like", like, self.d_in)
        return reference.undo_input_norm(out, like.to(out.dtype), self.input_norm)

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
            ValueError: a feature that the SAE does not have or a name of several, a value relative to a maximum that
                is not known, NaN or infinite weights in an edited row.
        """
        if not isinstance(edit, Edit):
            raise TypeError(f"SAE.plan takes an Edit, got {type(edit).__name__}; write Edit.set({{feature: value}})")
        if activation is None:
            return lower(self, edit, self.activation, reconstruct, preserve_norm)
        if reconstruct:
            return self.with_activation(activation).plan(edit, reconstruct=True, preserve_norm=preserve_norm)
        _check_activation(activation, self.d_sae)
        return lower(self, edit, activation.to(self.device), reconstruct, preserve_norm)

    @property
    def digest(self) -> str:
        """SHA-256 over shapes, rules, all biases and thresholds, and evenly spaced rows of both matrices.

        The same for an SAE in memory and on disk, without reading a file of gigabytes.
        """
        if self._digest is None:
            self._digest = digest_of(self)
        return self._digest

    def with_screen(self) -> "SAE":
        """The same SAE with an int8 copy of its encoder beside it, F x D bytes.

        ``ops.encode`` of few tokens on the CPU then reads that copy, a quarter of the bytes, and only looks exactly at
        features that may be active: same codes, bit for bit.
        """
        other = copy.copy(self)
        other._elsewhere = WeakValueDictionary()
        other.screen = Screen.of(self.whole_encoder(torch.float32)[0])
        return other

    def whole_encoder(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(encoder rows [F, D], row table [F, 10] without edits) of every feature, for ops that need them all.

        The table is of ``dtype``, fp32 or fp64. So are the rows, but bf16 weights stay bf16 beside an fp32 table.
        Made once and kept, shared by all copies of the SAE: row-major rows beside the weights as SAELens stores them.
        """
        if dtype not in self._tables:
            features = torch.arange(self.d_sae, device=self.device)
            columns = weights.whole("W_enc", self.W_enc)
            rows, bias = fold_encoder(self, columns.T, features)
            self._tables[dtype] = self.activation.table(features, bias.to(dtype), self.d_sae)
            if dtype not in self._encoders:
                changed = self.rescale_acts_by_decoder_norm or self.normalize == "layer_norm"
                narrow = columns.dtype == torch.bfloat16 and dtype == torch.float32 and not changed
                self._encoders[dtype] = (columns.T if narrow else rows.to(dtype)).contiguous()
        return self._encoders[dtype], self._tables[dtype]

    def whole_decoder(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(decoder rows [F, D], bias [D]) such that the reconstruction is f @ rows + bias; dtypes as in
        ``whole_encoder``."""
        if dtype not in self._decoders:
            rows = weights.whole("W_dec", self.W_dec)
            narrow = rows.dtype == torch.bfloat16 and dtype == torch.float32 and not self.rescale_acts_by_decoder_norm
            decoder = rows if narrow else fold_decoder(self, rows).to(dtype)
            self._decoders[dtype] = decoder.contiguous(), self.b_dec.to(dtype)
        return self._decoders[dtype]


def _check_activation(activation: object, n_features: int) -> None:
    if not isinstance(activation, Activation):
        raise TypeError(f"SAE: activation should be ss.ReLU(), ss.TopK(k), ..., got {activation!r}")
    activation.check(n_features)


def _check_last(method: str, name: str, tensor: Tensor, width: int) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"SAE.{method}: {name} should be a floating point tensor, got {tensor.dtype}")
    if tensor.dim() == 0 or tensor.shape[-1] != width:
        raise ValueError(f"SAE.{method}: {name} should have shape [..., {width}], got {list(tensor.shape)}")
