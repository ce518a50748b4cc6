"""The front end's side: a bad request is answered before it reaches the engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sparsesteer.serving import vllm_metrics
from sparsesteer.serving.served_spec import ServedSpec
from sparsesteer.serving.settings import settings_of
from sparsesteer.serving.spec_store import SpecStore
from sparsesteer.serving.windows import windows
from sparsesteer.serving.wishes import KEY, Refusal, parse_wish, refusing, unknown_spec, wish_of

_ATTRIBUTE = "_sparsesteer"


def store_of(processor: Any) -> SpecStore | None:
    """What an input processor knows of specs; None where nothing was declared."""
    found = getattr(processor, _ATTRIBUTE, None)
    if found is None:
        settings = settings_of(processor.vllm_config.additional_config)
        if settings is None:
            return None
        found = SpecStore(settings.specs, settings.limits)
        setattr(processor, _ATTRIBUTE, found)
    return found


def before_validation(original: Any, processor: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
    """``InputProcessor._validate_params``: 400 for a wish that cannot be granted."""
    wish = wish_of(params)
    if wish is not None:
        _found(processor, wish)
    return original(processor, params, *args, **kwargs)


def after_inputs(original: Any, processor: Any, *args: Any, **kwargs: Any) -> Any:
    """``InputProcessor.process_inputs``: 400 for positions that the prompt, now in tokens, does not have."""
    request = original(processor, *args, **kwargs)
    wish = wish_of(request.sampling_params)
    if wish is not None:
        found = _found(processor, wish)
        ids = request.prompt_token_ids if request.prompt_token_ids is not None else request.prompt_embeds
        with _answering(wish), refusing("positions"):
            windows(found.positions, len(ids))  # type: ignore[arg-type]
        vllm_metrics.count_steered()
    return request


def around_adding(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """``LLMEngine.add_request``: what a core in this process refuses is forgotten, else the engine waits for it."""
    try:
        return original(engine, *args, **kwargs)
    except Exception:
        core = getattr(engine.engine_core, "engine_core", None)
        if core is not None:
            waited_for = engine.output_processor.request_states
            engine.abort_request([each for each in waited_for if each not in core.scheduler.requests], internal=True)
        raise


def refuse_all(reasons: list[str]) -> Any:
    """In place of ``before_validation`` where vLLM is not as it was tried."""

    def refuse(original: Any, processor: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        wish = wish_of(params)
        if wish is not None:
            with _answering(wish):
                raise Refusal("vllm", f"this version of vLLM cannot be steered: {'; '.join(reasons)}")
        return original(processor, params, *args, **kwargs)

    return refuse


def _found(processor: Any, value: Any) -> ServedSpec:
    """The spec that is wished for. Raises for what is no wish, an unknown spec, too much strength."""
    with _answering(value):
        wish = parse_wish(value)
        store = store_of(processor)
        if store is None:
            raise Refusal("vllm", "this engine was not started with sparsesteer in its additional_config")
        with refusing("unknown"):
            found = store.find(wish.name)
        if found is None:
            raise unknown_spec(wish.name)
        with refusing("strength"):
            store.limits.check_strength(found[1].strength * wish.strength, str(value))
            store.limits.check_dose(store.dose(found[0]) * abs(wish.strength), str(value))
    return found[1]


@contextmanager
def _answering(value: Any) -> Iterator[None]:
    """A refusal becomes vLLM's own kind of error, which its server answers with 400."""
    try:
        yield
    except Refusal as refusal:
        from vllm.exceptions import VLLMValidationError

        vllm_metrics.count_refused(refusal.reason)
        raise VLLMValidationError(f"sparsesteer: {refusal}", parameter=KEY, value=value) from refusal
