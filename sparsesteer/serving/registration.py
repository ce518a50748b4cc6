"""Registering specs with a running engine of vLLM's offline interface, ``vllm.LLM``."""

from typing import Any

from sparsesteer.serving import spec_files
from sparsesteer.serving.served_spec import ServedSpec
from sparsesteer.serving.vllm_frontend import store_of
from sparsesteer.serving.wishes import check_name


def register(llm: Any, spec: ServedSpec, name: str | None = None) -> str:
    """Make a spec known to every worker, and only then to requests; returns its id.

    Raises:
        ValueError: not a name; an engine without sparsesteer.
        Exception: what the workers raised; then no request can name the spec.
    """
    store = _store(llm)
    if name is not None:
        check_name(name)
    llm.collective_rpc("sparsesteer_register", args=(spec_files.to_bytes(spec), name))
    return store.add(spec, name)


def remove(llm: Any, name: str) -> str:
    """Take a spec back, by name or id; returns its id.

    Raises:
        KeyError: an unknown one.
        Exception: requests use it; try again later.
    """
    store = _store(llm)
    found = store.find(name)
    if found is None:
        raise KeyError(f"no spec {name!r} is known")
    llm.collective_rpc("sparsesteer_remove", args=(found[0],))
    store.discard(found[0])
    return found[0]


def status(llm: Any) -> dict[str, Any]:
    """Figures of the first worker and the core, as plain data."""
    return llm.collective_rpc("sparsesteer_status")[0]


def _store(llm: Any) -> Any:
    store = store_of(llm.llm_engine.input_processor)
    if store is None:
        raise ValueError("the engine was not started with sparsesteer: LLM(..., additional_config={'sparsesteer': {}})")
    return store
