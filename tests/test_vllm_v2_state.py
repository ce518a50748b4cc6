"""vLLM's V2 runner, as far as it comes without a GPU: its own classes are told of requests and steps as it tells them.

The runner itself needs Triton and does not run here.
"""

import types

import numpy as np
import pytest
import torch
import vllm_engine
from serving_cases import specs

from sparsesteer.serving import seams, vllm_plugin
from sparsesteer.serving.admission import Steered
from sparsesteer.serving.request_table import RequestTable
from sparsesteer.serving.settings import settings_of
from sparsesteer.serving.token_map import NO_SLOT
from sparsesteer.serving.vllm_v2_state import Requests, steered_state
from sparsesteer.serving.vllm_worker import SteeredWorker, _refuse_untried
from sparsesteer.serving.windows import windows

files = vllm_engine.files
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(files):
    from vllm.engine.arg_utils import EngineArgs

    steering = {"sparsesteer": {"sites": files[1]["sites"]}}
    arguments = {"dtype": "float32", "max_model_len": 128, "max_num_seqs": 8, "max_num_batched_tokens": 128}
    return EngineArgs(
        files[1]["model"], skip_tokenizer_init=True, additional_config=steering, **arguments
    ).create_engine_config()


@pytest.fixture
def worker(config, monkeypatch):
    """As armed, but for the model: its blocks are those of an engine."""
    monkeypatch.setattr(SteeredWorker, "_arm", lambda *args: None)
    v2 = types.SimpleNamespace(
        use_v2_model_runner=True, scheduler_config=config.scheduler_config, model_config=config.model_config
    )
    found = SteeredWorker(settings_of(config.additional_config), v2, None, CPU)
    for spec in specs().values():
        found.store.add(spec)
    return found


@pytest.fixture
def state(config, worker):
    from vllm.v1.worker.gpu.model_states import resolve_model_state_cls

    vllm_plugin.register()
    kind = seams._locate("vllm.v1.worker.gpu.model_states:resolve_model_state_cls")
    chosen = getattr(*kind)(config, torch.nn.Linear(1, 1))
    assert chosen.__name__ == "SteeredDefaultModelState" and issubclass(
        chosen, resolve_model_state_cls.__wrapped__(config, torch.nn.Linear(1, 1))
    )
    found = chosen(config, torch.nn.Linear(1, 1), None, CPU)
    found.requests = Requests(worker, worker.tokens)
    return found


def come(state, request_id, index, name, prompt_length, strength=1.0):
    """The runner's ``add_requests`` for one request."""
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import NewRequestData

    extra = None
    if name is not None:
        spec = specs()[name]
        extra = {"sparsesteer": Steered(spec.id, strength, windows(spec.positions, prompt_length)).document()}
    prompt, params = list(range(3, 3 + prompt_length)), SamplingParams(extra_args=extra)
    state.add_request(
        index,
        NewRequestData(
            req_id=request_id, prompt_token_ids=prompt, mm_features=[], sampling_params=params,
            pooling_params=None, block_ids=([],), num_computed_tokens=0, lora_request=None, prefill_token_ids=prompt,
        ),
    )  # fmt: skip


def step(state, rows, padded=None):
    """The runner's batch: (index, scheduled, computed) of each request, padded as for a CUDA graph."""
    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    counts = [n for _, n, _ in rows]
    buffers = InputBuffers(8, 128, CPU)
    batch = InputBatch.make_dummy(len(rows), padded or sum(counts), buffers)
    starts = np.concatenate([[0], np.cumsum(counts), [sum(counts)] * 2])  # requests are padded too
    batch.query_start_loc = torch.tensor(starts, dtype=torch.int32)
    batch.idx_mapping = torch.tensor([index for index, _, _ in rows])
    places = np.concatenate([np.arange(c, c + n) for _, n, c in rows])
    batch.positions[: sum(counts)] = torch.from_numpy(places)
    state.preprocess_state(batch, (), None, torch.zeros(8, dtype=torch.int32))


def slot_of(worker, name):
    return worker.residency._slot[specs()[name].id]


def test_requests_are_steered_from_their_first_chunk_to_their_last_token(state, worker):
    come(state, "a", 5, "set", 6, strength=0.5)
    come(state, "b", 2, "add-generated", 4)
    come(state, "c", 7, None, 3)
    state.apply_staged_writes()
    a, b = slot_of(worker, "set"), slot_of(worker, "add-generated")
    step(state, [(2, 4, 0), (5, 3, 0), (7, 3, 0)], padded=16)
    assert worker.tokens.slot[:16].tolist() == [NO_SLOT] * 4 + [a] * 3 + [NO_SLOT] * 9
    assert worker.tokens.strength[4:7].tolist() == [0.5] * 3
    step(state, [(7, 1, 3), (2, 1, 4), (5, 3, 3)])  # sorted anew: decodes first
    assert worker.tokens.slot[:16].tolist() == [NO_SLOT, b, a, a, a] + [NO_SLOT] * 11
    assert worker.residency.in_use == 2


def test_a_preempted_request_comes_back_at_another_index(state, worker):
    come(state, "a", 0, "two-sites-prompt", 6)
    state.apply_staged_writes()
    slot = slot_of(worker, "two-sites-prompt")
    step(state, [(0, 6, 0)])
    step(state, [(0, 1, 6)])
    assert worker.tokens.slot[0] == NO_SLOT
    state.remove_request("a")
    assert worker.residency.in_use == 0
    come(state, "a", 3, "two-sites-prompt", 6)  # with tokens that it had generated, as if they were a prompt
    state.apply_staged_writes()
    step(state, [(3, 8, 0)])
    assert worker.tokens.slot[:8].tolist() == [slot] * 6 + [NO_SLOT] * 2


def test_an_index_that_goes_to_an_unsteered_request_is_clean(state, worker):
    come(state, "a", 0, "set", 6)
    come(state, "b", 1, "last", 6)
    state.apply_staged_writes()
    state.remove_request("a")
    come(state, "c", 0, None, 6)
    state.apply_staged_writes()
    step(state, [(0, 6, 0), (1, 6, 0)])
    assert worker.tokens.slot[:12].tolist() == [NO_SLOT] * 11 + [slot_of(worker, "last")]


def test_a_model_state_that_is_not_armed_is_as_vllm_made_it(config):
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    found = steered_state(DefaultModelState)(config, torch.nn.Linear(1, 1), None, CPU)
    come(found, "a", 0, "set", 6)
    found.apply_staged_writes()
    step(found, [(0, 6, 0)])
    found.remove_request("a")


def test_the_runner_is_steered_where_the_operator_asks_for_it_alone(config, worker):
    assert isinstance(worker.tokens, RequestTable)
    v2 = types.SimpleNamespace(
        use_v2_model_runner=True, speculative_config=None, kv_transfer_config=None,
        parallel_config=config.parallel_config, compilation_config=config.compilation_config,
    )  # fmt: skip
    with pytest.raises(ValueError, match="has never run on a GPU: set VLLM_USE_V2_MODEL_RUNNER=0"):
        _refuse_untried(v2, settings_of({"sparsesteer": {}}))
    _refuse_untried(v2, settings_of({"sparsesteer": {"v2_runner": True}}))
