"""Where a model of vLLM keeps its residual stream between blocks, by the class of its blocks.

Most blocks return ``(hidden, residual)``: their last addition is left to the norm of whoever reads next, so that the
stream is hidden + residual. What a form says is tried on the loaded model before anything is served.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockForm:
    """What is known of a class of blocks.

    Args:
        writers: the children whose outputs are added to the stream.
        deferred: True if the block returns (hidden, residual) with the stream as their sum; else the stream itself.
    """

    writers: tuple[str, ...]
    deferred: bool = True

    def call(self, block: nn.Module, hidden: Tensor, residual: Tensor) -> Any:
        """The block on a stream that was left as hidden + residual."""
        if not self.deferred:
            return block(hidden + residual)
        positions = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        return block(positions=positions, hidden_states=hidden, residual=residual)


_PRE_NORM = BlockForm(("self_attn", "mlp"))
FORMS = {
    "LlamaDecoderLayer": _PRE_NORM,
    "MistralDecoderLayer": _PRE_NORM,
    "Qwen2DecoderLayer": _PRE_NORM,
    "Qwen3DecoderLayer": _PRE_NORM,
    "GemmaDecoderLayer": _PRE_NORM,
    "Gemma2DecoderLayer": _PRE_NORM,
    "Gemma3DecoderLayer": _PRE_NORM,
    "GPT2Block": BlockForm(("attn", "mlp"), deferred=False),
}


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The model's blocks in order, those of other pipeline ranks as place holders.

    Raises:
        ValueError: no list of blocks of a known class, or several.
    """
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and any(type(each).__name__ in FORMS for each in module)
    ]
    if len(lists) != 1:
        kinds = sorted({type(each).__name__ for m in model.modules() if isinstance(m, nn.ModuleList) for each in m})
        raise ValueError(
            f"{type(model).__name__} has {len(lists)} lists of blocks that can be steered while serving; known are "
            f"{', '.join(FORMS)}, this model has lists of {', '.join(kinds) or 'nothing'}"
        )
    return list(lists[0])


def form_of(block: nn.Module) -> BlockForm | None:
    """What is known of a block; None for a place holder of a block that another pipeline rank has."""
    return FORMS.get(type(block).__name__)


def check_stream(block: nn.Module, form: BlockForm, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Try a form on a loaded block: with attention and MLP silent, the stream must come out as it went in.

    Raises:
        RuntimeError: it does not; this version of the model is not what the form describes.
    """
    generator = torch.Generator().manual_seed(0)
    hidden, residual = (torch.randn(3, width, generator=generator).to(device, dtype) for _ in range(2))
    stream = hidden + residual
    with torch.no_grad(), ExitStack() as silence:
        for name in form.writers:
            silence.enter_context(_silent(getattr(block, name, None), name, block))
        output = form.call(block, hidden.clone(), residual.clone())
    what = type(block).__name__
    if isinstance(output, tuple) != form.deferred or (form.deferred and len(output) != 2):
        raise RuntimeError(f"{what} returns {_shape(output)}, not what sparsesteer knows of it; is vLLM newer than it?")
    found = output[0] + output[1] if form.deferred else output
    if found.shape != stream.shape or not torch.allclose(found, stream, atol=1e-2 if dtype != torch.float32 else 1e-5):
        raise RuntimeError(
            f"{what} does not hold its residual stream where sparsesteer looks for it; it cannot be steered with this "
            "version of vLLM"
        )


@contextmanager
def _silent(child: nn.Module | None, name: str, block: nn.Module) -> Iterator[None]:
    """A child that adds nothing to the stream."""
    if child is None:
        raise RuntimeError(
            f"{type(block).__name__} has no {name}, which sparsesteer knows it by; is vLLM newer than it?"
        )
    had = vars(child).get("forward")
    child.forward = _zeros
    try:
        yield
    finally:
        if had is None:
            del child.forward
        else:
            child.forward = had


def _zeros(*args: Any, **kwargs: Any) -> Tensor:
    tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.is_floating_point()]
    return torch.zeros_like(tensors[0])


def _shape(output: Any) -> str:
    return f"a tuple of {len(output)}" if isinstance(output, tuple) else type(output).__name__
