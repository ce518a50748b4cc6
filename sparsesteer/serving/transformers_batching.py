"""Per-request steering in transformers' continuous batching: one model, one batch, a spec for each request."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from sparsesteer.serving.admission import Steered
from sparsesteer.serving.declared_banks import banks_of
from sparsesteer.serving.limits import Limits
from sparsesteer.serving.residency import Residency
from sparsesteer.serving.served_spec import ServedSpec
from sparsesteer.serving.settings import DeclaredSite, Settings
from sparsesteer.serving.spec_store import SpecStore
from sparsesteer.serving.transformers_loop import SteeredLoop
from sparsesteer.serving.windows import windows
from sparsesteer.serving.wishes import parse_wish

_SLOTS = 1024  # waiting requests hold a slot too


class SteeredBatching:
    """A ``ContinuousBatchingManager`` whose requests are steered each by a spec of its own.

        manager = model.init_continuous_batching(generation_config, continuous_batching_config)
        with SteeredBatching(manager, {"polite": spec}) as batching:
            outputs = batching.generate([prompt, prompt], ["polite@0.8", None], max_new_tokens=20)

    The context starts the manager and stops it, and leaves the model as it was. Inside of it the manager may be used as
    ever; what it is given itself is not steered, nor are calls of the model by other threads.

    Prefix sharing stays on. Blocks before a request's first steered token are shared with all requests, those from it
    on with none.

    Args:
        manager: as ``model.init_continuous_batching`` makes it, not started yet.
        specs: by the names that requests use; more may be registered later at the same sites.
        sites: places for specs that come later; those of ``specs`` need not be declared.
        slots: different specs of running and waiting requests at a time.

    Raises:
        ValueError: CUDA graphs, compilation, asynchronous batching or tensor parallelism, none of which was tried;
            a site that the model lacks, or an SAE of another width.
        RuntimeError: a version of transformers that keeps its batches otherwise.
    """

    def __init__(
        self,
        manager: Any,
        specs: Mapping[str, ServedSpec],
        *,
        sites: Sequence[DeclaredSite] = (),
        slots: int = _SLOTS,
        limits: Limits | None = None,
    ) -> None:
        _refuse_untried(manager)
        settings = Settings(sites=tuple(sites), slots=slots)
        banks = banks_of(settings, list(specs.values()), slots, manager.model.device)
        if not banks:
            raise ValueError("SteeredBatching: neither specs nor sites were given, so that nothing could be steered")
        self._manager = manager
        self._store = SpecStore(limits=limits)
        self._residency = Residency(banks, slots)
        self._loop = SteeredLoop(manager.model, self._residency, self._store)
        self._numbers = itertools.count()
        self._undo: ExitStack | None = None
        for name, spec in specs.items():
            self.register(spec, name)

    def register(self, spec: ServedSpec, name: str | None = None) -> str:
        """Make a spec known, and a name that from now on means it; returns its id.

        Raises:
            ValueError: a place that was not declared, or a plan of another SAE or rule than there; not a name.
        """
        self._store.limits.check(spec, "the spec")
        self._residency.placed(spec)
        return self._store.add(spec, name)

    def add_request(
        self,
        input_ids: Sequence[int],
        wish: str | None = None,
        *,
        request_id: str | None = None,
        max_new_tokens: int | None = None,
        streaming: bool = False,
        eos_token_id: int | list[int] | None = None,
    ) -> str:
        """As the manager's own; steered by ``wish``, "NAME", "NAME@STRENGTH" or an id for the name. Returns its id.

        A spec for which running and waiting requests leave no room fails this request alone, with the reason as its
        output's error.

        Raises:
            ValueError: not a wish, too strong, an index outside of the prompt.
            KeyError: an unknown spec.
            RuntimeError: the manager takes no requests.
        """
        request_id = f"steered_{next(self._numbers)}" if request_id is None else request_id
        if wish is not None:
            self._loop.want(request_id, self._granted(wish, len(input_ids)))
        given = {"max_new_tokens": max_new_tokens, "streaming": streaming, "eos_token_id": eos_token_id}
        if self._manager.add_request(list(input_ids), request_id, **given) is None:
            self._loop.want(request_id, None)
            raise RuntimeError("the manager takes no requests; it was stopped or has failed")
        return request_id

    def generate(
        self, prompts: Sequence[Sequence[int]], wishes: Sequence[str | None], max_new_tokens: int | None = None
    ) -> list[Any]:
        """The outputs of a batch in the order of its prompts, when all of it is there; errors are in the outputs.

        Raises:
            ValueError: as many wishes as prompts are needed; as ``add_request``.
            RuntimeError: the loop has ended before its requests.
        """
        if len(prompts) != len(wishes):
            raise ValueError(f"generate: {len(prompts)} prompts need as many wishes (None for none), got {len(wishes)}")
        ids = [
            self.add_request(prompt, wish, max_new_tokens=max_new_tokens)
            for prompt, wish in zip(prompts, wishes, strict=True)
        ]
        outputs: dict[str, Any] = {}
        while not all(each in outputs for each in ids):
            output = self._manager.get_result(timeout=1)
            if output is not None and output.is_finished():
                outputs[output.request_id] = output
            elif output is None and not self._manager.is_running():
                raise RuntimeError("the generation loop has ended before its requests; its log says why")
        return [outputs[each] for each in ids]

    def status(self) -> dict[str, int]:
        """Figures."""
        return {
            "resident": len(self._residency),
            "in_use": self._residency.in_use,
            "steered_tokens": self._loop.steered_tokens,
        }

    def __enter__(self) -> "SteeredBatching":
        if self._undo is not None:
            raise RuntimeError("SteeredBatching: this context is entered already")
        with ExitStack() as undo:
            undo.callback(self._loop.let_go)
            self._manager.warmup()  # makes what holds the batches
            self._loop.arm(self._manager.batch_processor, undo)
            self._manager.start()
            undo.callback(self._manager.stop)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._undo is not None
        self._undo.close()
        self._undo = None

    def _granted(self, value: str, prompt_length: int) -> Steered:
        wish = parse_wish(value)
        found = self._store.find(wish.name)
        if found is None:
            raise KeyError(f"no spec {wish.name!r} is known; there are {', '.join(sorted(self._store.names()))}")
        spec_id, spec = found
        strength = spec.strength * wish.strength
        self._store.limits.check_strength(strength, value)
        return Steered(spec_id, strength, windows(spec.positions, prompt_length))  # type: ignore[arg-type]


def _refuse_untried(manager: Any) -> None:
    """Raise for what was never tried."""
    config = manager.continuous_batching_config
    for wrong, what in (
        (manager.is_running() or manager.batch_processor is not None, "a manager that was started; make a new one"),
        (any(config.cuda_graph_booleans), "CUDA graphs; set use_cuda_graph=False"),
        (config.varlen_compile_config or config.decode_compile_config, "compilation; set default_compile_level=0"),
        (config.use_async_batching, "asynchronous batching; set use_async_batching=False"),
        (getattr(manager.model, "_device_mesh", None) is not None, "tensor parallelism"),
    ):
        if wrong:
            raise ValueError(f"SteeredBatching does not work with {what}")
