"""What the kernel reads: the rows, tables and rules of one set of edits at one site."""

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsesteer import reference
from sparsesteer._layout import N_COLUMNS, InputNorm, OutputScale
from sparsesteer.site import Site

if TYPE_CHECKING:
    from sparsesteer.sae import SAE

TABLES = ("encoder", "decoder", "rows", "features", "constant_features")
_ROW_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def _no_features() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class SteeringPlan:
    """Edits lowered to the operator of ``ops.steer``; made by ``SAE.plan``, never changed afterwards.

    TopK and reconstruct plans need the whole SAE: they hold a reference to it, never a copy.

    Attributes:
        encoder: [M, D] encoder rows, everything about the input norm folded in but one factor per token.
        decoder: [M, D_out] decoder rows.
        rows: [M, 10], columns of ``_layout.Column``.
        features: int64 [M], their numbers in the SAE, rising.
        constant_features: int64 [C], edited without being encoded.
        delta_bias: [D_out], sum of all constant edits; None if there is none.
        k: active features per token of a TopK SAE, 0 for every other.
        site: where it reads and writes.
        sae_digest: of the SAE that it was made from.
    """

    encoder: Tensor
    decoder: Tensor
    rows: Tensor
    features: Tensor
    constant_features: Tensor = field(default_factory=_no_features)
    delta_bias: Tensor | None = None
    input_norm: InputNorm = InputNorm.NONE
    scale_rule: OutputScale = OutputScale.ONE
    gap: float = 0.0
    preserve_norm: bool = False
    k: int = 0
    reconstruct: bool = False
    site: Site = field(default_factory=Site)
    sae_digest: str | None = None
    sae: "SAE | None" = None

    def __post_init__(self) -> None:
        if self.encoder.dim() != 2 or self.decoder.dim() != 2 or 0 in (self.encoder.shape[1], self.decoder.shape[1]):
            raise ValueError(
                "SteeringPlan: encoder and decoder should have shapes [M, D] and [M, D_out], "
                f"got {list(self.encoder.shape)} and {list(self.decoder.shape)}"
            )
        m, out_width = len(self.encoder), self.decoder.shape[1]
        table = torch.float64 if self.encoder.dtype == torch.float64 else torch.float32
        for name, tensor, shape, dtype in (
            ("decoder", self.decoder, (m, out_width), self.encoder.dtype),
            ("rows", self.rows, (m, N_COLUMNS), table),
            ("features", self.features, (m,), torch.int64),
            ("constant_features", self.constant_features, (self.constant_features.numel(),), torch.int64),
            ("delta_bias", self.delta_bias, (out_width,), table),
        ):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"SteeringPlan: {name} should have shape {list(shape)}, got {list(tensor.shape)}")
            if tensor is not None and tensor.dtype != dtype:
                raise TypeError(f"SteeringPlan: {name} should be {dtype}, got {tensor.dtype}")
        if self.encoder.dtype not in _ROW_DTYPES:
            raise TypeError(f"SteeringPlan: encoder should be fp32, fp64 or bf16, got {self.encoder.dtype}")
        if self.k < 0 or not math.isfinite(self.gap):
            raise ValueError(f"SteeringPlan: k should not be negative and gap finite, got {self.k} and {self.gap}")

    def __len__(self) -> int:
        """M, the number of features that are encoded."""
        return self.encoder.shape[0]

    def __repr__(self) -> str:
        kind = "reconstruct" if self.reconstruct else f"topk({self.k})" if self.k else "rows"
        constant = ", constant part" if self.delta_bias is not None else ""
        return f"SteeringPlan({kind}, M={len(self)}, D={self.encoder.shape[1]}{constant}, {self.site})"

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.encoder.device

    @property
    def needs_sae(self) -> bool:
        """True if the whole SAE takes part, not only the edited rows."""
        return self.reconstruct or (self.k > 0 and len(self) > 0)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SteeringPlan":
        """The plan on another device, or with rows in another dtype (fp32, fp64, or bf16 to halve the bytes).

        A table keeps fp32 beside bf16 rows: only encoder and decoder rows are rounded.
        """
        if dtype is not None and dtype not in _ROW_DTYPES:
            raise TypeError(f"SteeringPlan.to: rows can be fp32, fp64 or bf16, not {dtype}")
        table_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        return replace(
            self,
            encoder=self.encoder.to(device=device, dtype=dtype),
            decoder=self.decoder.to(device=device, dtype=dtype),
            rows=self.rows.to(device=device, dtype=table_dtype),
            features=self.features.to(device=device),
            constant_features=self.constant_features.to(device=device),
            delta_bias=None if self.delta_bias is None else self.delta_bias.to(device=device, dtype=table_dtype),
            sae=self.sae if self.sae is None or device is None else self.sae.to(device),
        )

    def __or__(self, other: "SteeringPlan") -> "SteeringPlan":
        """Both sets of edits at once. Raises ValueError for plans of different rules, widths or SAEs,
        and for a feature that both edit."""
        if not isinstance(other, SteeringPlan):
            return NotImplemented
        for name in ("input_norm", "scale_rule", "gap", "preserve_norm", "k", "reconstruct", "sae_digest"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"plans differ in {name} ({getattr(self, name)} and {getattr(other, name)}) and cannot be joined; "
                    "steer with one after the other"
                )
        for name in ("encoder", "decoder"):
            if getattr(self, name).shape[1] != getattr(other, name).shape[1]:
                raise ValueError(f"plans differ in the width of their {name} rows and cannot be joined")
        twice = self._edited() & other._edited()
        if twice:
            raise ValueError(f"feature {min(twice)} is edited by both plans; give each feature one rule")
        biases = [b for b in (self.delta_bias, other.delta_bias) if b is not None]
        joined: dict[str, Any] = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in TABLES}
        delta_bias = sum(biases[1:], biases[0]) if biases else None
        return replace(self, **joined, delta_bias=delta_bias, sae=self.sae or other.sae).in_order()

    def in_order(self) -> "SteeringPlan":
        """The same plan, its features in rising order."""
        order = self.features.argsort()
        return replace(self, **{name: getattr(self, name)[order] for name in TABLES[:4]})

    def reconstruction_bias(self, decoder_bias: Tensor) -> Tensor:
        """[D_out], all that a reconstruct plan's result holds where no feature is active."""
        bias = decoder_bias + reference.inactive_deltas(self.rows) @ self.decoder.to(self.rows.dtype)
        return bias if self.delta_bias is None else bias + self.delta_bias

    def _edited(self) -> set[int]:
        return set(torch.cat([self.features, self.constant_features]).tolist())

    def save(self, path: str | os.PathLike) -> Path:
        """Write the plan as one safetensors file, its provenance in the header; returns the path."""
        from sparsesteer.plans import files as plan_files

        return plan_files.save_plan(self, path)

    @staticmethod
    def load(path: str | os.PathLike, sae: "SAE | None" = None) -> "SteeringPlan":
        """Read a plan. A TopK or reconstruct plan needs its ``sae`` again, checked by digest.

        Raises:
            ValueError: not a plan, a truncated file, a newer version, another SAE than the plan was made from.
        """
        from sparsesteer.plans import files as plan_files

        return plan_files.load_plan(path, sae)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload a steering plan",
    ) -> str:
        """Put the plan and a card that says what it edits into a repository of the Hugging Face Hub.

        The repository is made if there is none. Returns the commit's address.

        Raises:
            PermissionError: not logged in, or no right to write there.
            OSError: the Hub does not answer, or refuses.
        """
        from sparsesteer.plans import hub

        return hub.push_plan(
            self,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
        )

    @staticmethod
    def from_pretrained(
        repo_id_or_path: str | os.PathLike,
        sae: "SAE | None" = None,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
    ) -> "SteeringPlan":
        """Read a plan out of a repository of the Hugging Face Hub, a folder, or a file; ``sae`` as in ``load``.

        Raises:
            FileNotFoundError: no such repository, revision or folder, or there is no plan in it.
            ValueError: as ``load``.
        """
        from sparsesteer.plans import hub

        path = hub.plan_file(
            repo_id_or_path, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return SteeringPlan.load(path, sae)

    def to_gguf(
        self, path: str | os.PathLike, *, model_hint: str, layer: int | None = None, strength: float = 1.0
    ) -> Path:
        """Write an unconditional plan as a control vector for llama.cpp (``control_vectors.save_gguf``).

        Args:
            model_hint: llama.cpp's name of the model's architecture, "llama".
            layer: the block after which it is added, where the plan's site does not say.

        Raises:
            ValueError: a plan that is more than one constant vector, or a place that llama.cpp has no vector for.
        """
        from sparsesteer.plans import control_vectors

        layer = control_vectors.layer_of(self.site) if layer is None else layer
        return control_vectors.save_gguf({layer: self}, path, model_hint=model_hint, strength=strength)

    def with_sae(self, sae: "SAE", name: object = "the plan") -> "SteeringPlan":
        """The plan beside the SAE it was made from, on its device. Raises ValueError for another SAE."""
        if sae.digest != self.sae_digest:
            raise ValueError(
                f"{name} was made from another SAE (digest {self.sae_digest}, given {sae.digest}); "
                "if only the activation differs, give sae.with_activation(...)"
            )
        if len(self) and int(self.features.max()) >= sae.d_sae:
            raise ValueError(f"{name}: feature {int(self.features.max())} is out of range, the SAE has {sae.d_sae}")
        return replace(self, sae=sae if self.needs_sae else None).to(sae.device)
