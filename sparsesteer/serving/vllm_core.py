"""The engine core's side: admission, and cache keys that keep steered blocks apart."""

import weakref
from functools import partial
from typing import Any

from sparsesteer.serving.admission import Admission, Capacity, Demand, Steered
from sparsesteer.serving.settings import settings_of
from sparsesteer.serving.windows import within
from sparsesteer.serving.wishes import KEY, wish_of

_ATTRIBUTE = "_sparsesteer"


def admission_of(core: Any) -> Admission | None:
    """The core's admission, filled from what its workers have; None where nothing was declared."""
    found = getattr(core, _ATTRIBUTE, None)
    if found is None:
        settings = settings_of(core.vllm_config.additional_config)
        if settings is None:
            return None
        replies = core.model_executor.collective_rpc("sparsesteer_describe")
        if any(reply != replies[0] for reply in replies):
            raise RuntimeError("sparsesteer: the workers do not hold the same specs; is the folder the same for all?")
        found = Admission(Capacity(replies[0]["slots"], replies[0]["banks"]), settings.limits)
        for described in replies[0]["specs"]:
            _learn(found, described)
        setattr(core, _ATTRIBUTE, found)
    return found


def after_caches(original: Any, core: Any, *args: Any) -> Any:
    """``EngineCore._initialize_kv_caches``: ask the workers, which have their models now, while nothing runs yet.

    Requests come in another thread, from which workers must not be asked. The plugins of the core's process are loaded
    when ``__init__`` has begun, too late to wrap it.
    """
    result = original(core, *args)
    admission_of(core)
    return result


def before_adding(original: Any, core: Any, request: Any) -> Any:
    """``EngineCore.preprocess_add_request``: let a request in, or raise, which ends this request alone.

    What it asked for is replaced by what it gets, in a copy: scheduler, cache keys and workers read that.
    """
    wish = wish_of(request.sampling_params)
    if wish is None:
        return original(core, request)
    admission = admission_of(core)
    if admission is None:
        raise ValueError("this engine was not started with sparsesteer in its additional_config")
    n_prompt = len(request.prompt_token_ids if request.prompt_token_ids is not None else request.prompt_embeds)
    claim = admission.enter(wish, n_prompt)
    params = request.sampling_params.clone()
    params.extra_args = {**params.extra_args, KEY: claim.steered.document()}
    request.sampling_params = params
    try:
        result = original(core, request)
    except BaseException:
        admission.leave(claim)
        raise
    setattr(result[0], _ATTRIBUTE, partial(admission.seat, claim))
    weakref.finalize(result[0], admission.leave, claim)
    return result


def before_scheduling(original: Any, scheduler: Any, request: Any) -> bool:
    """``Scheduler._handle_blocked_waiting_request``: a request waits, others pass it, until there is room for its spec.

    vLLM asks this of every waiting request in each step, in their order.
    """
    seat = getattr(request, _ATTRIBUTE, None)
    if seat is not None and not seat():
        return False
    return original(scheduler, request)


def around_rpc(original: Any, core: Any, method: Any, timeout: Any = None, args: tuple = (), kwargs: Any = None) -> Any:
    """``EngineCore.collective_rpc``: a spec is known here when every worker has it, and forgotten here first."""
    admission = admission_of(core) if isinstance(method, str) and method.startswith("sparsesteer_") else None
    if admission is None:
        return original(core, method, timeout, args, kwargs)
    if method == "sparsesteer_remove":
        admission.forget(args[0])
    replies = original(core, method, timeout, args, kwargs)
    if method == "sparsesteer_register":
        if any(reply != replies[0] for reply in replies):
            raise RuntimeError("sparsesteer: the workers read the spec differently; it is not served")
        _learn(admission, replies[0])
    if method == "sparsesteer_status":
        return [{**reply, "core": admission.status(), "known": admission.known()} for reply in replies]
    return replies


def with_steering_keys(original: Any, request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int) -> Any:
    """``generate_block_hash_extra_keys``: a block with steered tokens is another block.

    Its key says which of its tokens are steered, by what and how much. Blocks behind it differ by their parent's hash,
    blocks before it are shared with everyone.
    """
    keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
    steered = Steered.of(wish_of(request.sampling_params))
    if steered is None or steered.strength == 0:
        return keys, next_mm_idx
    inside = within(steered.windows, start_token_idx, end_token_idx)
    if not inside:
        return keys, next_mm_idx
    return (*(keys or ()), (KEY, steered.id, steered.strength, *inside)), next_mm_idx


def _learn(admission: Admission, described: dict[str, Any]) -> None:
    features = {bank: frozenset(numbers) for bank, numbers in described["features"]}
    demand = Demand(described["positions"], described["strength"], features, described["dose"])
    admission.learn(described["id"], demand)
    for name in described["names"]:
        admission.learn(described["id"], demand, name)
