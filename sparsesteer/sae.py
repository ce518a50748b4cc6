"""A sparse autoencoder: weights, activation, normalisation, provenance."""

import copy
import os
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from sparsesteer import decoding, ops, reference, weights
from sparsesteer._layout import InputNorm
from sparsesteer.activations import Activation, Gated, TopK, check_activation
from sparsesteer.digest import digest_of
from sparsesteer.edits import Edit
from sparsesteer.explanations import Explanations
from sparsesteer.lowering import NORMALIZATIONS, lower, whole_encoder
from sparsesteer.ops import SparseCodes
from sparsesteer.ops.border import check_last
from sparsesteer.plans import SteeringPlan
from sparsesteer.screen import Screen
from sparsesteer.site import Site
from sparsesteer.weights import Matrix


class SAE:
    """Sparse autoencoder f = act((norm(x) - b_dec) W_enc + b_enc), x ~ denorm(f W_dec + b_dec).

    A transcoder reads one tensor and writes another: f = act(norm(x) W_enc + b_enc), y ~ f W_dec + b_dec. Both may
    have a skip connection, W_skip x added to what is decoded.

    Weights are constants: shared with the caller, never copied, no gradient flows to them.

    Args:
        W_enc: [D, F]; a tensor, or a stored one of which plans read only the columns they need.
        W_dec: [F, D]; [F, D_out] of a transcoder.
        W_skip: [D_out, D]. An edit that keeps the reconstruction error leaves it alone.
        b_enc: [F], zeros if not given (``Gated`` has its own biases and takes none).
        b_dec: [D_out], zeros if not given.
        activation: ``ReLU()``, ``JumpReLU(threshold)``, ``TopK(k)``, ``Gated(...)``, ``Identity()``, ``Slots(...)``.
        normalize: "none", "layer_norm" or "constant_norm_rescale", applied to each token as SAELens does.
        apply_b_dec_to_input: subtract b_dec before encoding; by default all but transcoders do, and these cannot.
        rescale_acts_by_decoder_norm: activations (and TopK's ranks) in units of each decoder row's norm.
        feature_maximum: [F], each feature's largest activation on the SAE's corpus, where known.
        transcoder: it writes another tensor than it reads; always so where D_out differs from D.

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
        W_skip: Matrix | None = None,
        b_enc: Tensor | None = None,
        b_dec: Tensor | None = None,
        activation: Activation,
        normalize: str = "none",
        apply_b_dec_to_input: bool | None = None,
        rescale_acts_by_decoder_norm: bool = False,
        site: Site | None = None,
        feature_maximum: Tensor | None = None,
        transcoder: bool = False,
    ) -> None:
        weights.check_matrices(W_enc, W_dec, W_skip)
        n_features, out_width = W_dec.shape
        transcoder = transcoder or out_width != W_enc.shape[0]
        device = weights.device_of(W_enc)
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"SAE: normalize should be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
        check_activation(activation, n_features)
        if isinstance(activation, Gated) and b_enc is not None and b_enc.any():
            raise ValueError("SAE: a gated SAE has b_gate and b_mag in place of b_enc; leave b_enc out")
        if transcoder and apply_b_dec_to_input:
            raise ValueError("SAE: the b_dec of a transcoder belongs to what it writes; apply_b_dec_to_input=False")
        self.W_enc, self.W_dec = weights.constant(W_enc), weights.constant(W_dec)
        self.W_skip = None if W_skip is None else weights.constant(W_skip)
        self.transcoder = transcoder
        self.b_enc = weights.vector("b_enc", b_enc, n_features, device)
        self.b_dec = weights.vector("b_dec", b_dec, out_width, device)
        self.activation = activation.to(device)
        self.normalize = normalize
        self.apply_b_dec_to_input = not transcoder if apply_b_dec_to_input is None else apply_b_dec_to_input
        self.rescale_acts_by_decoder_norm = rescale_acts_by_decoder_norm
        self.site = site or Site()
        self.feature_maximum = feature_maximum
        if feature_maximum is not None:
            self.feature_maximum = weights.vector("feature_maximum", feature_maximum, n_features, device)
        self._forget()

    def _forget(self) -> None:
        """Drop what was computed from the weights."""
        self.screen: Screen | None = None
        self._digest: str | None = None
        self._tables: dict[torch.dtype, Tensor] = {}
        self._encoders: dict[torch.dtype, Tensor] = {}
        self._decoders: dict[torch.dtype, Tensor] = {}
        self._skips: dict[torch.dtype, Tensor] = {}
        self._elsewhere: WeakValueDictionary[torch.device, SAE] = WeakValueDictionary()

    @staticmethod
    def load_from_disk(path: str | os.PathLike, *, site: Site | None = None, k: int | None = None) -> "SAE":
        """Read an SAE of any known format, a folder or a file (``loaders.load_from_disk``)."""
        from sparsesteer import loaders

        return loaders.load_from_disk(path, site=site, k=k)

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

    def save(self, path: str | os.PathLike) -> Path:
        """Write the SAE as a new folder in SAELens's format, complete or not at all (``saving.save``)."""
        from sparsesteer.saving import save

        return save(self, path)

    @property
    def d_in(self) -> int:
        """D, the width of the tensor that is read."""
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """D_out, the width of the tensor that is written; D for all but some transcoders."""
        return self.W_dec.shape[1]

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
        widths = f"D={self.d_in}, D_out={self.d_out}" if self.transcoder else f"D={self.d_in}"
        return f"SAE({widths}, F={self.d_sae}, {kind}, normalize={self.normalize!r}, {self.site})"

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
            for name in ("W_enc", "W_dec", "W_skip"):
                matrix = getattr(self, name)
                setattr(moved, name, None if matrix is None else weights.whole(name, matrix).to(device))
            for name in ("b_enc", "b_dec", "activation", "feature_maximum"):
                part = getattr(self, name)
                setattr(moved, name, None if part is None else part.to(device))
            self._elsewhere[device] = moved
        return moved

    def with_activation(self, activation: Activation) -> "SAE":
        """The same weights, shared, under another activation, e.g. ``ReLU()`` without TopK's mask."""
        check_activation(activation, self.d_sae)
        other = copy.copy(self)
        other._forget()
        other.activation = activation.to(self.device)
        other._encoders, other._decoders, other._skips = self._encoders, self._decoders, self._skips
        other.screen = self.screen
        return other

    def encode(self, h: Tensor) -> Tensor:
        """All activations f [..., F] of h [..., D], dense, in the units of SAELens's ``hook_sae_acts_post``."""
        check_last("SAE.encode", "h", h, self.d_in)
        x = reference.read_input(h.reshape(-1, self.d_in), None)
        encoder, table = self.whole_encoder(x.dtype)
        f = reference.dense_codes(x, encoder, table, self.k, self.input_norm)
        return f.view(*h.shape[:-1], self.d_sae).to(h.dtype)

    def encode_sparse(self, h: Tensor, k: int | None = None) -> SparseCodes:
        """The active features of every token of h [..., D], without a tensor of all features (``ops.encode``)."""
        return ops.encode(h, self, k)

    def decode(self, f: Tensor | SparseCodes, like: Tensor | None = None) -> Tensor:
        """Reconstruction [..., D_out] of activations, dense [..., F] or sparse.

        Args:
            like: the tensor [..., D] that was encoded, whose mean and scale a normalising SAE gives back, and which
                a skip connection passes on.
        """
        if isinstance(f, SparseCodes):
            return ops.decode(f, self, like)
        check_last("SAE.decode", "f", f, self.d_sae)
        decoder, bias = self.whole_decoder(torch.promote_types(f.dtype, torch.float32))
        out = f.to(bias.dtype) @ decoder.to(bias.dtype) + bias
        return self.completed(out, like).to(f.dtype)

    def completed(self, out: Tensor, like: Tensor | None) -> Tensor:
        """What is decoded [..., D_out] with all that depends on the tensor ``like`` [..., D] that was encoded."""
        return decoding.completed(self, out, like)

    def plan(
        self,
        edit: Edit,
        *,
        activation: Activation | None = None,
        reconstruct: bool = False,
        preserve_norm: bool = False,
        gap: float | None = None,
    ) -> SteeringPlan:
        """Lower an edit to the tables that ``ops.steer`` reads.

        Args:
            activation: use another activation than the SAE's own, e.g. ``ReLU()`` without TopK's mask.
            reconstruct: replace the tensor by its edited reconstruction, dropping the SAE's error.
            preserve_norm: give every edited token the length it had.
            gap: the edit is scaled by r = gap / sum_j d_j, and by 0 where that sum is (gap-fill, arXiv 2502.15576).

        Raises:
            ValueError: a feature that the SAE does not have or a name of several, a value relative to a maximum that
                is not known, NaN or infinite weights in an edited row; a gap beside normalised input or constant edits.
        """
        if not isinstance(edit, Edit):
            raise TypeError(f"SAE.plan takes an Edit, got {type(edit).__name__}; write Edit.set({{feature: value}})")
        if activation is None:
            return lower(self, edit, self.activation, reconstruct, preserve_norm, gap)
        if reconstruct:
            return self.with_activation(activation).plan(edit, reconstruct=True, preserve_norm=preserve_norm, gap=gap)
        check_activation(activation, self.d_sae)
        return lower(self, edit, activation.to(self.device), reconstruct, preserve_norm, gap)

    @property
    def digest(self) -> str:
        """What tells SAEs apart (``digest.digest_of``): the same in memory and on disk, and no file is read whole."""
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
        Made once and kept, shared by all copies of the SAE.
        """
        if dtype not in self._tables:
            features = torch.arange(self.d_sae, device=self.device)
            rows, bias = whole_encoder(self, dtype)
            if dtype not in self._encoders:
                self._encoders[dtype] = rows.contiguous()
            self._tables[dtype] = self.activation.table(features, bias, self.d_sae)
        return self._encoders[dtype], self._tables[dtype]

    def whole_decoder(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(rows [F, D_out], bias [D_out]) such that f @ rows + bias is decoded; dtypes as in ``whole_encoder``."""
        if dtype not in self._decoders:
            self._decoders[dtype] = decoding.whole_decoder(self, dtype)
        return self._decoders[dtype], self.b_dec.to(dtype)

    def whole_skip(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[D, D_out] such that x @ it is what the skip connection passes on; only where there is one."""
        if dtype not in self._skips:
            self._skips[dtype] = decoding.whole_skip(self, dtype)
        return self._skips[dtype]
