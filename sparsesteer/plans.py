"""What the kernel reads: the rows, tables and rules of one set of edits at one site."""

import json
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsesteer._layout import N_COLUMNS, InputNorm, OutputScale
from sparsesteer.site import Site

if TYPE_CHECKING:
    from sparsesteer.sae import SAE

FORMAT_VERSION = 1
_ROW_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class SteeringPlan:
    """Edits lowered to the operator of ``ops.steer``; made by ``SAE.plan``, never changed afterwards.

    TopK and reconstruct plans need the whole SAE: they hold a reference to it, never a copy.
    """

    encoder: Tensor  # [M, D] encoder rows, everything about the input norm folded in but one factor per token
    decoder: Tensor  # [M, D_out] decoder rows
    rows: Tensor  # [M, 10], columns of ``_layout.Column``
    features: Tensor  # int64 [M], their numbers in the SAE
    delta_bias: Tensor | None = None  # [D_out], sum of all constant edits
    input_norm: InputNorm = InputNorm.NONE
    scale_rule: OutputScale = OutputScale.ONE
    gap: float = 0.0
    preserve_norm: bool = False
    k: int = 0  # active features per token of a TopK SAE, 0 for every other
    reconstruct: bool = False
    site: Site = field(default_factory=Site)
    sae_digest: str | None = None
    sae: "SAE | None" = None

    def __post_init__(self) -> None:
        m, width = self.encoder.shape
        for name, tensor, want in (
            ("decoder", self.decoder, (m, self.decoder.shape[-1])),
            ("rows", self.rows, (m, N_COLUMNS)),
            ("features", self.features, (m,)),
            ("delta_bias", self.delta_bias, (self.decoder.shape[-1],)),
        ):
            if tensor is not None and tuple(tensor.shape) != want:
                raise ValueError(f"SteeringPlan: {name} should have shape {list(want)}, got {list(tensor.shape)}")
        if self.encoder.dtype not in _ROW_DTYPES or self.decoder.dtype != self.encoder.dtype:
            raise TypeError(
                "SteeringPlan: encoder and decoder should be of one dtype, fp32, fp64 or bf16, "
                f"got {self.encoder.dtype} and {self.decoder.dtype}"
            )
        if width == 0 or self.decoder.shape[-1] == 0:
            raise ValueError("SteeringPlan: the model width is 0")

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
        return self.reconstruct or self.k > 0

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "SteeringPlan":
        """The plan on another device, or with rows in another dtype (fp32, fp64, or bf16 to halve the bytes).

        A table keeps fp32 beside bf16 rows: only encoder and decoder rows are rounded.
        """
        if dtype is not None and dtype not in _ROW_DTYPES:
            raise TypeError(f"SteeringPlan.to: rows can be fp32, fp64 or bf16, not {dtype}")
        table_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        bias = self.delta_bias
        sae = self.sae.to(device) if self.sae is not None and device is not None else self.sae
        return replace(
            self,
            encoder=self.encoder.to(device=device, dtype=dtype),
            decoder=self.decoder.to(device=device, dtype=dtype),
            rows=self.rows.to(device=device, dtype=table_dtype),
            features=self.features.to(device=device),
            delta_bias=None if bias is None else bias.to(device=device, dtype=table_dtype),
            sae=sae,
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
        twice = set(self.features.tolist()) & set(other.features.tolist())
        if twice:
            raise ValueError(f"feature {min(twice)} is edited by both plans")
        biases = [b for b in (self.delta_bias, other.delta_bias) if b is not None]
        return replace(
            self,
            encoder=torch.cat([self.encoder, other.encoder]),
            decoder=torch.cat([self.decoder, other.decoder]),
            rows=torch.cat([self.rows, other.rows]),
            features=torch.cat([self.features, other.features]),
            delta_bias=sum(biases[1:], biases[0]) if biases else None,
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write the plan as one safetensors file, its provenance in the header; returns the path."""
        path = Path(path)
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in ("encoder", "decoder", "rows", "features")}
        if self.delta_bias is not None:
            tensors["delta_bias"] = self.delta_bias.detach().cpu().contiguous()
        description = {
            "version": FORMAT_VERSION,
            "input_norm": self.input_norm.name,
            "scale_rule": self.scale_rule.name,
            "gap": self.gap,
            "preserve_norm": self.preserve_norm,
            "k": self.k,
            "reconstruct": self.reconstruct,
            "sae_digest": self.sae_digest,
            "site": vars(self.site),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        os.close(handle)
        try:
            save_file(tensors, temporary, metadata={"sparsesteer": json.dumps(description, sort_keys=True)})
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        return path

    @classmethod
    def load(cls, path: str | os.PathLike, sae: "SAE | None" = None) -> "SteeringPlan":
        """Read a plan. A TopK or reconstruct plan needs its ``sae`` again, checked by digest.

        Raises:
            ValueError: not a plan, a truncated file, a newer version, another SAE than the plan was made from.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                description = json.loads((file.metadata() or {}).get("sparsesteer", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
        if not isinstance(description, dict):
            raise ValueError(f"{path} is a safetensors file but not a steering plan; write one with plan.save(path)")
        if description.get("version") != FORMAT_VERSION:
            raise ValueError(
                f"{path} is a plan of version {description.get('version')}, this sparsesteer reads {FORMAT_VERSION}"
            )
        try:
            plan = cls(
                encoder=tensors["encoder"],
                decoder=tensors["decoder"],
                rows=tensors["rows"],
                features=tensors["features"],
                delta_bias=tensors.get("delta_bias"),
                input_norm=InputNorm[description["input_norm"]],
                scale_rule=OutputScale[description["scale_rule"]],
                gap=float(description["gap"]),
                preserve_norm=bool(description["preserve_norm"]),
                k=int(description["k"]),
                reconstruct=bool(description["reconstruct"]),
                site=Site(**description["site"]),
                sae_digest=description["sae_digest"],
            )
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is not a complete steering plan: {error!r}") from error
        plan._check_finite(path)
        if sae is None:
            return plan
        if sae.digest != plan.sae_digest:
            raise ValueError(f"{path} was made from another SAE (digest {plan.sae_digest}, given {sae.digest})")
        return replace(plan, sae=sae) if plan.needs_sae else plan

    def _check_finite(self, path: object) -> None:
        for name in ("encoder", "decoder", "delta_bias"):
            tensor = getattr(self, name)
            if tensor is not None and not torch.isfinite(tensor).all():
                raise ValueError(f"{path}: {name} has NaN or infinite values")
        if torch.isnan(self.rows).any():
            raise ValueError(f"{path}: rows have NaN values")
