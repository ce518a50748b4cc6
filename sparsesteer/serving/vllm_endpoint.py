"""The entry point ``vllm.endpoint_plugins``: specs over HTTP, beside the OpenAI routes of vLLM's server.

Everybody may read. Registering and removing need an operator who allowed it and a server that asks for an API key,
for what is registered steers other people's requests. Bodies are safetensors; nothing in them is run, and no request
names a file.
"""

import logging
import os
from typing import Any

from fastapi import APIRouter, HTTPException, Request

from sparsesteer.serving import spec_files, vllm_metrics
from sparsesteer.serving.settings import Settings, settings_of
from sparsesteer.serving.spec_store import SpecStore
from sparsesteer.serving.vllm_frontend import store_of
from sparsesteer.serving.wishes import check_name

logger = logging.getLogger(__name__)
_ROUTE = "/v1/sparsesteer"


class SpecRoutes:
    """What vLLM asks of an endpoint plugin."""

    name = "sparsesteer"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None
        self._settings: Settings | None = None
        self._has_key = False

    def attach_router(self, app: Any) -> None:
        """Add the routes."""
        router = APIRouter()
        router.add_api_route(f"{_ROUTE}/specs", self.listed, methods=["GET"])
        router.add_api_route(f"{_ROUTE}/specs", self.registered, methods=["POST"])
        router.add_api_route(f"{_ROUTE}/specs/{{name}}", self.removed, methods=["DELETE"])
        router.add_api_route(f"{_ROUTE}/status", self.status, methods=["GET"])
        app.include_router(router)
        app.add_middleware(vllm_metrics.FreshFigures, refresh=self._show_figures)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Learn of the engine and of what the operator allows."""
        self._engine = engine_client
        self._settings = None if engine_client is None else settings_of(engine_client.vllm_config.additional_config)
        self._has_key = bool(getattr(args, "api_key", None) or os.environ.get("VLLM_API_KEY"))

    async def listed(self) -> dict[str, Any]:
        """GET specs: the names of every spec, by id."""
        return {"specs": (await self._figures())["known"]}

    async def status(self) -> dict[str, Any]:
        """GET status: figures of the first worker and the core."""
        return {name: value for name, value in (await self._figures()).items() if name != "known"}

    async def registered(self, request: Request, name: str | None = None) -> dict[str, Any]:
        """POST specs?name=NAME with a spec's file as the body: usable when this answers."""
        store = self._open_to_change()
        data = await self._body(request, store)
        try:
            spec = spec_files.from_bytes(data, "the spec", store.limits)
            if name is not None:
                check_name(name)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        await self._rpc(400, "sparsesteer_register", data, name)
        return {"id": store.add(spec, name), "name": name}

    async def removed(self, name: str) -> dict[str, Any]:
        """DELETE specs/NAME, or an id; 409 while requests use it."""
        store = self._open_to_change()
        try:
            found = store.find(name)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        if found is None:
            raise HTTPException(404, f"no spec {name!r} is known")
        await self._rpc(409, "sparsesteer_remove", found[0])
        store.discard(found[0])
        return {"id": found[0]}

    def _open_to_change(self) -> SpecStore:
        """The front end's store. Raises 403 where changes are not allowed."""
        if self._settings is None or not self._settings.allow_registration:
            raise HTTPException(
                403, "this server does not let specs be changed: sparsesteer serve --allow-registration"
            )
        if not self._has_key:
            raise HTTPException(403, "specs can be changed on a server with an API key alone: --api-key")
        store = store_of(self._engine.input_processor)
        assert store is not None
        return store

    async def _body(self, request: Request, store: SpecStore) -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > store.limits.spec_bytes:
                raise HTTPException(413, f"a spec has at most {store.limits.spec_bytes} bytes")
        return bytes(data)

    async def _figures(self) -> dict[str, Any]:
        if self._settings is None:
            raise HTTPException(503, "this engine was not started with sparsesteer in its additional_config")
        return (await self._rpc(500, "sparsesteer_status"))[0]

    async def _show_figures(self) -> None:
        if self._settings is None:
            return
        try:
            vllm_metrics.show(await self._figures())
        except HTTPException as error:  # an engine that is gone; /metrics still has what was counted here
            logger.warning("sparsesteer: no figures of the engine: %s", error.detail)

    async def _rpc(self, code: int, method: str, *args: Any) -> list[Any]:
        try:
            return await self._engine.collective_rpc(method, args=args)
        except Exception as error:  # whatever a worker raised comes as vLLM's own kind
            raise HTTPException(code, str(error)) from error
