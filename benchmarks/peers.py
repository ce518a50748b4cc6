"""Other people's classes, with the weights of ours, where they are installed."""

import importlib
import os
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsesteer.benchmarks.weights import VALUE, Weights

if TYPE_CHECKING:
    from sae_lens import SAE as LensSAE
    from sparsify import SparseCoder


@cache
def absent_saelens() -> str:
    """Why SAELens cannot take part; empty if it can."""
    return _absent("sae-lens", "sae_lens")


@cache
def absent_sparsify() -> str:
    """Why eai-sparsify cannot take part; empty if it can."""
    if not torch.cuda.is_available():
        os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # it would launch Triton kernels on CPU tensors
    return _absent("eai-sparsify", "sparsify")


def _absent(distribution: str, module: str) -> str:
    try:
        metadata.version(distribution)  # others may have the same import name
        importlib.import_module(module)
    except metadata.PackageNotFoundError:
        return f"{distribution} is not installed"
    except ImportError as error:  # a competitor that lacks something is as good as none
        return f"{distribution} does not load: {error}"
    return ""


def saelens(weights: Weights, activation: str, k: int, error_term: bool = False) -> "LensSAE":
    """SAELens's class for ``weights.sae(activation, k)``, in fp32."""
    if activation == "topk":
        return saelens_topk(weights, k, error_term)
    return saelens_jumprelu(weights, weights.threshold(k), error_term)


def saelens_topk(weights: Weights, k: int, error_term: bool) -> "LensSAE":
    """Raises ImportError where sae_lens is not installed."""
    from sae_lens import TopKSAE, TopKSAEConfig

    lens = TopKSAE(TopKSAEConfig(k=k, **_saelens_sizes(weights)), use_error_term=error_term)
    lens.load_state_dict(_saelens_state(weights), assign=True)
    return lens


def saelens_jumprelu(weights: Weights, threshold: float, error_term: bool) -> "LensSAE":
    """Raises ImportError where sae_lens is not installed."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    lens = JumpReLUSAE(JumpReLUSAEConfig(**_saelens_sizes(weights)), use_error_term=error_term)
    thresholds = torch.full_like(weights.bias, threshold, dtype=torch.float32)
    lens.load_state_dict(_saelens_state(weights) | {"threshold": thresholds}, assign=True)
    return lens


def _saelens_sizes(weights: Weights) -> dict[str, Any]:
    return {"d_in": weights.encoder.shape[1], "d_sae": weights.n_features, "device": str(weights.encoder.device)}


def _saelens_state(weights: Weights) -> dict[str, Tensor]:
    encoder, decoder = (rows[: weights.n_features].float() for rows in (weights.encoder, weights.decoder))
    return {
        "W_enc": encoder.T.contiguous(),
        "W_dec": decoder,
        "b_enc": weights.bias.float(),
        "b_dec": encoder.new_zeros(encoder.shape[1]),
    }


def set_codes(lens: "LensSAE", m: int) -> "LensSAE":
    """Set the first M features of a SAELens object at its own hook point."""

    def set_value(codes: Tensor, hook: object) -> Tensor:
        codes[:, :m] = VALUE
        return codes

    lens.add_hook("hook_sae_acts_post", set_value)
    return lens


def sparsify(weights: Weights, k: int) -> "SparseCoder":
    """EleutherAI's TopK coder in the dtype of the rows. Raises ImportError where eai-sparsify is not installed."""
    from sparsify import SparseCoder, SparseCoderConfig

    n_features, width = weights.n_features, weights.encoder.shape[1]
    rows = slice(n_features)
    config = SparseCoderConfig(num_latents=n_features, k=k)
    coder = SparseCoder(width, config, weights.encoder.device, weights.encoder.dtype)
    state = {
        "encoder.weight": weights.encoder[rows],
        "encoder.bias": weights.bias,
        "W_dec": weights.decoder[rows],
        "b_dec": weights.encoder.new_zeros(width),
    }
    coder.load_state_dict(state, assign=True)
    return coder
