"""The worker's side of vLLM's V2 runner, which knows its batch on the device alone; this has never run on a GPU.

The runner tells its model state of every request that comes and goes, and asks it before every step, outside of its
CUDA graphs. What vLLM chose as this state is subclassed.
"""

import functools
from typing import Any

from sparsesteer.serving.admission import Steered
from sparsesteer.serving.request_table import RequestTable, Row
from sparsesteer.serving.settings import settings_of
from sparsesteer.serving.wishes import wish_of


class Requests:
    """The runner's requests, by name and by index, and the table of what they ask for."""

    def __init__(self, worker: Any, table: RequestTable) -> None:
        self._worker = worker
        self._table = table
        self._index: dict[str, int] = {}

    def begin(self, request_id: str, index: int, sampling_params: Any) -> None:
        """A request comes, or comes back after a preemption."""
        steered = Steered.of(wish_of(sampling_params))
        slot = None if steered is None else self._worker.acquire(request_id, steered)
        self._index[request_id] = index
        self._table.stage(index, None if slot is None or steered is None else Row(slot, steered))

    def end(self, request_id: str) -> None:
        """A request has ended or is preempted; unknown ones are none of ours."""
        index = self._index.pop(request_id, None)
        if index is not None:
            self._table.drop(index)
            self._worker.finish([request_id])

    def apply(self) -> None:
        """All requests of the step have begun."""
        self._table.apply()

    def fill(self, batch: Any) -> None:
        """Write the map of a step; padded to the size of its CUDA graph."""
        n = batch.num_reqs
        self._table.fill(batch.idx_mapping[:n], batch.query_start_loc[: n + 1], batch.positions)


def after_resolving(original: Any, vllm_config: Any, model: Any) -> type:
    """``resolve_model_state_cls``: what vLLM chose, with steering where the engine declares it."""
    chosen = original(vllm_config, model)
    return chosen if settings_of(vllm_config.additional_config) is None else steered_state(chosen)


@functools.cache
def steered_state(base: Any) -> type:
    """A model state that also keeps the requests' steering; ``requests`` is set when the model is armed."""

    class SteeredState(base):
        requests: Requests | None = None

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            if self.requests is not None:
                self.requests.begin(new_req_data.req_id, req_index, new_req_data.sampling_params)

        def remove_request(self, req_id: str) -> None:
            super().remove_request(req_id)
            if self.requests is not None:
                self.requests.end(req_id)

        def apply_staged_writes(self) -> None:
            super().apply_staged_writes()
            if self.requests is not None:
                self.requests.apply()

        def preprocess_state(
            self, input_batch: Any, block_tables: Any, kv_cache_config: Any, num_computed_tokens: Any
        ) -> None:
            super().preprocess_state(input_batch, block_tables, kv_cache_config, num_computed_tokens)
            if self.requests is not None:
                self.requests.fill(input_batch)

    SteeredState.__name__ = SteeredState.__qualname__ = f"Steered{base.__name__}"
    return SteeredState
