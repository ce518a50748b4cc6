"""The entry point ``vllm.general_plugins``: runs in every process of vLLM, and wraps it there."""

import logging
from collections.abc import Callable
from typing import Any

from sparsesteer.serving import seams, vllm_core, vllm_frontend, vllm_v2_state, vllm_worker

logger = logging.getLogger(__name__)

_FRONTEND = "vllm.v1.engine.input_processor:InputProcessor._validate_params"
_WRAPPERS: dict[str, Callable[..., Any]] = {
    "vllm.v1.worker.gpu_worker:Worker.load_model": vllm_worker.after_load,
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._update_states": vllm_worker.after_update_states,
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs": vllm_worker.after_prepare_inputs,
    "vllm.v1.worker.gpu.model_states:resolve_model_state_cls": vllm_v2_state.after_resolving,
    "vllm.v1.engine.core:EngineCore._initialize_kv_caches": vllm_core.after_caches,
    "vllm.v1.engine.core:EngineCore.preprocess_add_request": vllm_core.before_adding,
    "vllm.v1.engine.core:EngineCore.collective_rpc": vllm_core.around_rpc,
    "vllm.v1.core.sched.scheduler:Scheduler._handle_blocked_waiting_request": vllm_core.before_scheduling,
    "vllm.v1.core.kv_cache_utils:generate_block_hash_extra_keys": vllm_core.with_steering_keys,
    "vllm.v1.engine.llm_engine:LLMEngine.add_request": vllm_frontend.around_adding,
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": vllm_frontend.after_inputs,
    _FRONTEND: vllm_frontend.before_validation,
}


def register() -> None:
    """Wrap vLLM's seams; an engine that declares no sparsesteer runs as before. May be called again."""
    found = seams.mismatches()
    if found:
        logger.error("sparsesteer refuses steered requests with this vLLM: %s", "; ".join(found))
        seams.wrap(_FRONTEND, vllm_frontend.refuse_all(found))
        return
    from vllm.v1.worker.worker_base import WorkerBase

    for place, around in _WRAPPERS.items():
        seams.wrap(place, around)
    vllm_worker.add_methods(WorkerBase)
