"""An engine of vLLM in a process of its own that is stepped from outside, so that several can take turns."""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any, NamedTuple
from unittest import mock

from sparsesteer.benchmarks.own_time import OwnTime, watch_plugin

ENVIRONMENT = {  # of every engine, in its process alone
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # threads spin, and those of two engines would wait for each other
}
START_SECONDS = 300


@dataclass(frozen=True)
class Start:
    """How an engine is started.

    Args:
        plugins: those of vLLM's plugins that it loads; "" for none, then vLLM runs as it was published.
        options: arguments of ``vllm.LLM``.
    """

    plugins: str
    options: Mapping[str, Any]


class Spent(NamedTuple):
    """Seconds on the clock, and of the processor: these do not count while others have it."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Load:
    """A batch of requests that are all there from the start; greedy, and each of the same number of new tokens."""

    prompts: Sequence[Sequence[int]]
    wishes: Sequence[str | None]
    new_tokens: int
    logprobs: bool = False


@dataclass
class Answers:
    """What an engine made of a load, by request: its tokens, and where asked for the log-probability of each."""

    tokens: list[list[int]]
    logprobs: list[list[float]] = field(default_factory=list)


class Engine:
    """The end of the pipe that the benchmark holds."""

    def __init__(self, start: Start) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, start), daemon=True)
        with mock.patch.dict(os.environ, ENVIRONMENT | {"VLLM_PLUGINS": start.plugins}):
            self._process.start()
        other_end.close()

    def wait(self) -> None:
        """Until it is started. Raises RuntimeError if it does not."""
        if not self._pipe.poll(START_SECONDS):
            raise RuntimeError(f"an engine did not start within {START_SECONDS} s")
        self._reply()

    def begin(self, load: Load) -> Spent:
        """Hand in all requests."""
        return self._ask("begin", load)

    def step(self) -> tuple[Spent, bool]:
        """One step, and whether requests are left."""
        return self._ask("step")

    def answers(self) -> Answers:
        """Of the load that has ended."""
        return self._ask("answers")

    def own_seconds(self) -> float:
        """Since the last time that this was asked, in the code of sparsesteer."""
        return self._ask("own_seconds")

    def status(self) -> dict[str, Any]:
        """Figures of the plugin."""
        return self._ask("status")

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join(30)

    def _ask(self, method: str, *args: Any) -> Any:
        self._pipe.send((method, *args))
        return self._reply()

    def _reply(self) -> Any:
        try:
            reply = self._pipe.recv()
        except EOFError:
            raise RuntimeError("an engine's process has ended; its last words are above") from None
        if isinstance(reply, Exception):
            raise RuntimeError(f"an engine failed: {reply}") from reply
        return reply


class _Served:
    """The engine itself, in its process."""

    def __init__(self, start: Start) -> None:
        import vllm

        self._clock = OwnTime()
        if start.plugins:
            from sparsesteer.serving import vllm_plugin

            watch_plugin(self._clock)
            vllm_plugin.register()  # vLLM does so itself where the package is installed; once is enough
        self._vllm = vllm
        self._llm = vllm.LLM(**start.options)
        self._answers: dict[int, Any] = {}
        self._load: Load | None = None

    def begin(self, load: Load) -> Spent:
        self._load, self._answers = load, {}
        engine, sampling = self._llm.llm_engine, self._vllm.SamplingParams
        started = _now()
        for number, (prompt, wish) in enumerate(zip(load.prompts, load.wishes, strict=True)):
            params = sampling(
                temperature=0,
                max_tokens=load.new_tokens,
                ignore_eos=True,
                detokenize=False,
                logprobs=0 if load.logprobs else None,
                extra_args=None if wish is None else {"sparsesteer": wish},
            )
            engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, params)
        return _since(started)

    def step(self) -> tuple[Spent, bool]:
        engine = self._llm.llm_engine
        started = _now()
        outputs = engine.step()
        spent = _since(started)
        self._answers |= {int(each.request_id): each.outputs[0] for each in outputs if each.finished}
        return spent, engine.has_unfinished_requests()

    def answers(self) -> Answers:
        assert self._load is not None
        found = [self._answers[number] for number in range(len(self._load.prompts))]
        tokens = [list(each.token_ids) for each in found]
        if not self._load.logprobs:
            return Answers(tokens)
        return Answers(tokens, [_logprobs(each) for each in found])

    def own_seconds(self) -> float:
        seconds, self._clock.seconds = self._clock.seconds, 0.0
        return seconds

    def status(self) -> dict[str, Any]:
        return self._llm.collective_rpc("sparsesteer_status")[0]


def _now() -> Spent:
    return Spent(perf_counter(), process_time())


def _since(started: Spent) -> Spent:
    now = _now()
    return Spent(now.wall - started.wall, now.cpu - started.cpu)


def _logprobs(answer: Any) -> list[float]:
    """Of the tokens of an answer."""
    return [step[token].logprob for token, step in zip(answer.token_ids, answer.logprobs, strict=True)]


def _serve(pipe: Any, start: Start) -> None:
    try:
        served = _Served(start)
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
        return
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        method, *args = asked
        try:
            pipe.send(getattr(served, method)(*args))
        except Exception as error:
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
