"""The formats that are read, and how one of them is told by what is there."""

from types import ModuleType

from sparsesteer.loaders import (
    attention_gpt2,
    circuit_tracer,
    deepseek_r1,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    qwen_scope,
    saelens,
    sparsify,
)
from sparsesteer.loaders.source import Source

# Each module has NAME, FILES, recognises(source) and read(source). Folders are told by the names of their files and
# come first; then files by the names of their tensors, the more particular ones first.
FORMATS: tuple[ModuleType, ...] = (
    saelens,
    sparsify,
    dictionary_learning,
    llama_scope,
    gemma_scope,
    gemma_scope_2,
    circuit_tracer,
    goodfire,
    deepseek_r1,
    attention_gpt2,
    qwen_scope,
)
_NAMES_SHOWN = 12


def format_of(source: Source) -> ModuleType:
    """The first format that recognises the source. Raises ValueError, with what was found and what is read."""
    for candidate in FORMATS:
        if candidate.recognises(source):
            return candidate
    supported = "; ".join(f"{candidate.FILES} ({candidate.NAME})" for candidate in FORMATS)
    raise ValueError(f"{source.path} is not a known SAE: {_found(source)}; supported are: {supported}")


def _found(source: Source) -> str:
    own = source.own_tensors
    if source.file is None:
        return "the folder holds " + _listed([path.name for path in source.folder.iterdir()])
    if own is None:
        return "the file is none of .safetensors, .npz, .pt, .pth"
    return "the file holds " + _listed(list(own.tensors))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return (", ".join(sorted(names)[:_NAMES_SHOWN]) or "nothing") + more
