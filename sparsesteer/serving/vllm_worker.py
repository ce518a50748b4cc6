"""The worker's side: the banks on the device, and what every step of vLLM's V1 runner needs."""

import logging
from typing import Any

import torch

from sparsesteer import _dispatch
from sparsesteer.serving import spec_files
from sparsesteer.serving.admission import Steered
from sparsesteer.serving.block_forms import blocks_of, check_stream, form_of
from sparsesteer.serving.declared_banks import banks_of
from sparsesteer.serving.request_table import RequestTable
from sparsesteer.serving.residency import NoRoom, Residency
from sparsesteer.serving.settings import KEY, Settings, settings_of
from sparsesteer.serving.spec_store import SpecStore
from sparsesteer.serving.steered_block import steer_block
from sparsesteer.serving.token_map import TokenMap
from sparsesteer.serving.vllm_v2_state import Requests
from sparsesteer.serving.wishes import wish_of

logger = logging.getLogger(__name__)
_ATTRIBUTE = "_sparsesteer"
_SLOTS = 1024  # preempted requests hold a slot too


class SteeredWorker:
    """Everything that a worker keeps for steering, beside its model runner."""

    def __init__(self, settings: Settings, vllm_config: Any, model: Any, device: torch.device) -> None:
        kind = RequestTable if vllm_config.use_v2_model_runner else TokenMap
        scheduler = vllm_config.scheduler_config
        self.slots = settings.slots or max(_SLOTS, scheduler.max_num_seqs)
        self.limits = settings.limits
        self.store = SpecStore(settings.specs, settings.limits)
        specs = [spec for _, spec in self.store.items()]
        self.residency = Residency(banks_of(settings, specs, self.slots, device), self.slots)
        self.tokens: TokenMap | RequestTable = kind(scheduler.max_num_batched_tokens, scheduler.max_num_seqs, device)
        self.unsteered = 0  # requests that got through and could not be steered; 0, or there is a fault
        self._requests: dict[str, tuple[int, Steered]] = {}
        self._seen: set[str] = set()
        for spec in specs:
            self.residency.placed(spec)
        self._arm(model, vllm_config, device)

    def _arm(self, model: Any, vllm_config: Any, device: torch.device) -> None:
        model_config = vllm_config.model_config
        eager = _runs_eagerly(vllm_config)
        warn_of_slow_ops(device)
        blocks = blocks_of(model)
        for number in sorted({each.block for each in self.residency.banks}):
            if number >= len(blocks):
                raise ValueError(f"there is no block {number} to steer after; the model has {len(blocks)}")
            block, form = blocks[number], form_of(blocks[number])
            if form is None:
                continue  # a place holder: another pipeline rank has the block
            banks = [each.bank for each in self.residency.banks if each.block == number]
            width = model_config.get_hidden_size()
            for bank in banks:
                if bank.encoder.shape[1] != width:
                    raise ValueError(f"the SAE after block {number} has width {bank.encoder.shape[1]}, not {width}")
            check_stream(block, form, width, model_config.dtype, device)
            steer_block(block, banks, self.tokens, may_skip=eager)

    def finish(self, request_ids: Any) -> None:
        """Requests have ended."""
        for request_id in request_ids:
            self._seen.discard(request_id)
            held = self._requests.pop(request_id, None)
            if held is not None:
                self.residency.release(held[1].id)

    def fill(self, runner: Any, n_scheduled: Any) -> None:
        """Write the map of the step that the runner has just prepared."""
        batch = runner.input_batch
        ids = batch.req_ids
        assert isinstance(self.tokens, TokenMap)
        self.tokens.set_rows(ids, lambda request_id: self._found(request_id, runner))
        self.tokens.fill(n_scheduled, batch.num_computed_tokens_cpu[: len(ids)])

    def register(self, data: bytes, name: str | None) -> dict[str, Any]:
        """Keep a spec; returns what the core needs to know of it. Raises ValueError for what does not fit."""
        spec = spec_files.from_bytes(data, "the spec", self.limits)
        self.residency.placed(spec)
        return self._described(self.store.add(spec, name))

    def remove(self, spec_id: str) -> str:
        """Forget a spec."""
        self.store.remove(spec_id)
        self.residency.drop(spec_id)
        return spec_id

    def describe(self) -> dict[str, Any]:
        """Capacity and specs, for the core's admission."""
        banks = [[len(each.bank.encoder), len(each.bank.rows)] for each in self.residency.banks]
        specs = [self._described(spec_id) for spec_id, _ in self.store.items()]
        return {"slots": self.slots, "banks": banks, "specs": specs}

    def status(self) -> dict[str, Any]:
        """Figures as plain data."""
        residency = self.residency
        return {
            "resident": len(residency),
            "in_use": residency.in_use,
            "loads": residency.loads,
            "evictions": residency.evictions,
            "steered_tokens": self.tokens.steered_tokens,
            "unsteered_requests": self.unsteered,
            "blocks": sorted({each.block for each in residency.banks}),
        }

    def _described(self, spec_id: str) -> dict[str, Any]:
        found = self.store.find(spec_id)
        assert found is not None
        spec, names = found[1], [name for name, each in self.store.names().items() if each == spec_id]
        plans = [plan for _, plan in sorted(spec.by_block().items())]
        features = [
            [bank, plan.features.tolist()] for bank, plan in zip(self.residency.placed(spec), plans, strict=True)
        ]
        document = spec_files.positions_of(spec)
        return {
            "id": spec_id,
            "names": names,
            "positions": document,
            "strength": spec.strength,
            "dose": self.limits.dose_of(spec),
            "features": features,
        }

    def _found(self, request_id: str, runner: Any) -> tuple[int, Steered] | None:
        if request_id not in self._seen:
            self._seen.add(request_id)
            steered = Steered.of(wish_of(runner.requests[request_id].sampling_params))
            if steered is not None:
                self.acquire(request_id, steered)
        return self._requests.get(request_id)

    def acquire(self, request_id: str, steered: Steered) -> int | None:
        """The slot of a request's spec, held until ``finish``; None if there is none, which is a fault and counted."""
        found = self.store.find(steered.id)
        try:
            if found is None:
                raise NoRoom(f"spec {steered.id} is not known to the worker")
            slot = self.residency.acquire(*found)
        except (NoRoom, ValueError) as error:
            # an exception here would end the engine and with it every other request
            self.unsteered += 1
            logger.error("sparsesteer: request %s is not steered: %s", request_id, error)
            return None
        self._requests[request_id] = slot, steered
        return slot


def after_load(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    """``Worker.load_model``: salt the compile cache, load, arm."""
    config = worker.vllm_config
    settings = settings_of(config.additional_config)
    if settings is not None:
        _refuse_untried(config, settings)
        from sparsesteer import __version__

        config.additional_config[KEY] = {**config.additional_config[KEY], "version": __version__}
    result = original(worker, *args, **kwargs)
    if settings is not None:
        runner = worker.model_runner
        steered = SteeredWorker(settings, config, runner.get_model(), runner.device)
        setattr(runner, _ATTRIBUTE, steered)
        if isinstance(steered.tokens, RequestTable):
            runner.model_state.requests = Requests(steered, steered.tokens)
    return result


def after_update_states(original: Any, runner: Any, scheduler_output: Any) -> Any:
    """``GPUModelRunner._update_states``: requests that ended give their specs back."""
    result = original(runner, scheduler_output)
    steered = getattr(runner, _ATTRIBUTE, None)
    if steered is not None:
        steered.finish(scheduler_output.finished_req_ids)
    return result


def after_prepare_inputs(original: Any, runner: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
    """``GPUModelRunner._prepare_inputs``: here the batch has the order in which its tokens enter the model."""
    result = original(runner, scheduler_output, num_scheduled_tokens)
    steered = getattr(runner, _ATTRIBUTE, None)
    if steered is not None:
        steered.fill(runner, num_scheduled_tokens)
    return result


def add_methods(worker_class: type) -> None:
    """The calls that the core sends to all workers."""
    for name in ("register", "remove", "describe", "status"):
        setattr(worker_class, f"sparsesteer_{name}", _method(name))


def _method(name: str) -> Any:
    def call(worker: Any, *args: Any) -> Any:
        worker = getattr(worker, "worker", worker)
        steered = getattr(worker.model_runner, _ATTRIBUTE, None)
        if steered is None:
            raise RuntimeError("the engine was not started with sparsesteer in its additional_config")
        return getattr(steered, name)(*args)

    call.__name__ = f"sparsesteer_{name}"
    return call


def warn_of_slow_ops(device: torch.device) -> None:
    """Log why a CPU has no compiled kernels; nothing says so but the time."""
    why = _dispatch.missing("native") if device.type == "cpu" else ""
    if why:
        logger.warning("sparsesteer steers without its compiled kernels, which takes far longer: %s", why)


def _runs_eagerly(config: Any) -> bool:
    """True if every step runs the model's Python code; the V2 runner's map of tokens is on the device alone."""
    compilation = config.compilation_config
    kept = compilation.mode.name != "NONE" or compilation.cudagraph_mode.name != "NONE"
    return not kept and not config.use_v2_model_runner


def _refuse_untried(config: Any, settings: Settings) -> None:
    """Raise for what would steer wrong tokens or was never tried."""
    parallel = config.parallel_config
    for wrong, what in (
        (
            config.use_v2_model_runner and not settings.v2_runner,
            "the V2 model runner, where steering has never run on a GPU: set VLLM_USE_V2_MODEL_RUNNER=0, or "
            "v2_runner in additional_config['sparsesteer'] to try it",
        ),
        (config.speculative_config is not None, "speculative decoding"),
        (config.kv_transfer_config is not None, "a KV connector, which would share what is steered"),
        (getattr(parallel, "enable_dbo", False), "dual batch overlap"),
        (getattr(parallel, "prefill_context_parallel_size", 1) > 1, "prefill context parallelism"),
        (getattr(parallel, "decode_context_parallel_size", 1) > 1, "decode context parallelism"),
        (getattr(config.compilation_config.pass_config, "enable_sp", False), "sequence parallelism"),
    ):
        if wrong:
            raise ValueError(f"sparsesteer does not serve with {what}")
