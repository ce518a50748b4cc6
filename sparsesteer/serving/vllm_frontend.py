"""The front end's side: a bad request is answered before it reaches the engine."""

from typing import Any

from sparsesteer.serving.served_spec import ServedSpec
from sparsesteer.serving.settings import settings_of
from sparsesteer.serving.spec_store import SpecStore
from sparsesteer.serving.windows import windows
from sparsesteer.serving.wishes import KEY, parse_wish, wish_of

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
        try:
            windows(found.positions, len(ids))  # type: ignore[arg-type]
        except ValueError as error:
            raise _error(str(error), wish) from error
    return request


def refuse_all(reasons: list[str]) -> Any:
    """In place of ``before_validation`` where vLLM is not as it was tried."""

    def refuse(original: Any, processor: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if wish_of(params) is not None:
            raise _error(f"this version of vLLM cannot be steered: {'; '.join(reasons)}")
        return original(processor, params, *args, **kwargs)

    return refuse


def _found(processor: Any, value: Any) -> ServedSpec:
    """The spec that is wished for. Raises for what is no wish, an unknown spec, too much strength."""
    try:
        wish = parse_wish(value)
        store = store_of(processor)
        if store is None:
            raise ValueError("this engine was not started with sparsesteer in its additional_config")
        found = store.find(wish.name)
        if found is None:
            raise ValueError(f"no spec {wish.name!r} is known; GET /v1/sparsesteer/specs lists them")
        store.limits.check_strength(found[1].strength * wish.strength, str(value))
        return found[1]
    except ValueError as error:
        raise _error(str(error), value) from error


def _error(message: str, value: Any = None) -> Exception:
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(f"sparsesteer: {message}", parameter=KEY, value=value)
