"""Where vLLM is wrapped, and with which arguments each of these places is known.

vLLM has no interface for any of this. A place whose arguments are others than those that were tried is not wrapped,
and steered requests are refused: what runs must never be unsteered in silence.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

TRIED_VERSIONS = ("0.32.0",)

# place: arguments, of vLLM 0.32
SEAMS = {
    "vllm.v1.worker.gpu_worker:Worker.load_model": ("self", "load_dummy_weights"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._update_states": ("self", "scheduler_output"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs": (
        "self",
        "scheduler_output",
        "num_scheduled_tokens",
    ),
    "vllm.v1.worker.gpu.model_states:resolve_model_state_cls": ("vllm_config", "model"),
    **{
        f"vllm.v1.worker.gpu.model_states.interface:ModelState.{name}": ("self", *arguments)
        for name, arguments in {
            "add_request": ("req_index", "new_req_data"),
            "remove_request": ("req_id",),
            "apply_staged_writes": (),
            "preprocess_state": ("input_batch", "block_tables", "kv_cache_config", "num_computed_tokens"),
        }.items()
    },
    "vllm.v1.engine.core:EngineCore._initialize_kv_caches": ("self", "vllm_config"),
    "vllm.v1.engine.core:EngineCore.preprocess_add_request": ("self", "request"),
    "vllm.v1.core.sched.scheduler:Scheduler._handle_blocked_waiting_request": ("self", "request"),
    "vllm.v1.engine.core:EngineCore.collective_rpc": ("self", "method", "timeout", "args", "kwargs"),
    "vllm.v1.engine.input_processor:InputProcessor._validate_params": ("self", "params", "supported_tasks"),
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": (
        *("self", "request_id", "prompt", "params", "supported_tasks", "arrival_time", "lora_request"),
        *("tokenization_kwargs", "trace_headers", "priority", "data_parallel_rank", "resumable", "session_id"),
        "kv_hints",
    ),
    "vllm.v1.engine.llm_engine:LLMEngine.add_request": (
        *("self", "request_id", "prompt", "params", "arrival_time", "lora_request", "tokenization_kwargs"),
        *("trace_headers", "priority", "session_id", "prompt_text", "kv_hints"),
    ),
    "vllm.v1.core.kv_cache_utils:generate_block_hash_extra_keys": (
        "request",
        "start_token_idx",
        "end_token_idx",
        "start_mm_idx",
    ),
}
_MARK = "_sparsesteer_wraps"


def mismatches() -> list[str]:
    """What this vLLM has otherwise, in words; empty if every place is as it was tried."""
    found = []
    for place, wanted in SEAMS.items():
        try:
            owner, name = _locate(place)
            have = tuple(inspect.signature(getattr(owner, name)).parameters)
        except (ImportError, AttributeError) as error:
            found.append(f"{place} is missing ({error})")
            continue
        if have != wanted:
            found.append(f"{place} takes {', '.join(have)}; known is {', '.join(wanted)}")
    return found


def wrap(place: str, around: Callable[..., Any]) -> None:
    """Replace a function by ``around(original, *args, **kwargs)``, wherever a module holds it; once, if asked again."""
    owner, name = _locate(place)
    original = getattr(owner, name)
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapper, _MARK, original)
    setattr(owner, name, wrapper)
    if inspect.ismodule(owner):
        _replace_imported(original, wrapper, name)


def _replace_imported(original: Callable, wrapper: Callable, name: str) -> None:
    """Modules that took the function by name hold the original."""
    for module in [each for key, each in sys.modules.items() if key.startswith("vllm.")]:
        if vars(module).get(name) is original:
            setattr(module, name, wrapper)


def _locate(place: str) -> tuple[Any, str]:
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parts, name = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    return owner, name
