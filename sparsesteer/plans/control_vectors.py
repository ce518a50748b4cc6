"""Unconditional plans as control vectors for llama.cpp: a GGUF file with one direction a layer."""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsesteer._layout import OutputScale
from sparsesteer.plans.plan import SteeringPlan
from sparsesteer.site import Site

ARCHITECTURE = "controlvector"
_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_BLOCK = re.compile(r"(?:.+\.)?(?:layers|h|blocks)\.(\d+)")


def save_gguf(
    plans: Mapping[int, SteeringPlan], path: str | os.PathLike, *, model_hint: str, strength: float = 1.0
) -> Path:
    """Write unconditional plans of one model as a control vector; returns the path.

    llama.cpp adds tensor ``direction.N`` to the residual stream after block N, blocks counted from 0 as here, and has
    none for block 0 (``llama_adapter_cvec`` in its src/llama-adapter.cpp).

    Args:
        plans: block -> plan; the constant vector is added to the residual stream after that block.
        model_hint: llama.cpp's name of the model's architecture ("llama", "qwen2", "gemma2"), for people to read.
        strength: factor on every vector.

    Raises:
        ValueError: no plans, a plan that is more than one constant vector, block 0, widths that differ.
        ImportError: gguf is not installed.
    """
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise ImportError("control vectors are written with gguf: pip install sparsesteer[gguf]") from error
    directions = _directions(plans, strength)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # written beside its place and moved there: a reader never sees half a file
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / "vectors.gguf"
        writer = GGUFWriter(temporary, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
        for layer, direction in directions.items():
            writer.add_tensor(f"direction.{layer}", direction.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(temporary, path)
    return path


def layer_of(site: Site) -> int:
    """The block after which a site's residual stream lies, as its name tells; -1 before block 0.

    Raises:
        ValueError: the name does not tell, or it is no place on the residual stream.
    """
    name = site.hook_name_out or site.hook_name or ""
    residual = _RESIDUAL.fullmatch(name)
    if residual is not None:
        return int(residual[1]) - (residual[2] == "pre")
    block = _BLOCK.fullmatch(name)
    if block is None:
        raise ValueError(
            f"{name or 'a plan without a site'}: the name does not say after which block the residual stream is "
            "steered; give layer="
        )
    return int(block[1])


def _directions(plans: Mapping[int, SteeringPlan], strength: float) -> dict[int, Tensor]:
    """fp32 [D] for each layer, in rising order."""
    if not isinstance(plans, Mapping) or not plans:
        raise ValueError(f"save_gguf takes plans by block, {{15: plan}}, got {plans!r}")
    directions = {}
    for layer in sorted(plans):
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 1:
            raise ValueError(
                f"llama.cpp steers after blocks 1 and up, counted from 0; it has no control vector for block {layer!r}"
            )
        directions[layer] = _direction(plans[layer], strength, f"the plan for block {layer}")
    widths = {len(direction) for direction in directions.values()}
    if len(widths) > 1:
        raise ValueError(f"the plans are of different widths, {sorted(widths)}; one file is for one model")
    return directions


def _direction(plan: SteeringPlan, strength: float, which: str) -> Tensor:
    if len(plan):
        shown = ", ".join(map(str, plan.features.tolist()[:8])) + (", ..." if len(plan) > 8 else "")
        raise ValueError(
            f"{which} is conditional: what it does to features {shown} depends on their activation, and llama.cpp adds "
            "one constant vector; only Edit.add without when_active is constant"
        )
    if plan.delta_bias is None:
        raise ValueError(f"{which} changes nothing: there is no vector to write")
    for holds, reason in (
        (plan.reconstruct, "it replaces the stream by a reconstruction"),
        (plan.preserve_norm, "it keeps each token's norm"),
        (plan.scale_rule != OutputScale.ONE, "its SAE normalises, so the vector's length differs from token to token"),
    ):
        if holds:
            raise ValueError(f"{which} is no constant vector: {reason}")
    direction = (plan.delta_bias.detach().cpu().double() * strength).float().contiguous()
    if not torch.isfinite(direction).all():
        raise ValueError(f"{which} times {strength} does not fit fp32")
    return direction
