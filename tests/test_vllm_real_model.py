"""32 requests to SmolLM2-135M in one batch, token for token what Hugging Face generates under the hook."""

import os

import pytest
import real_cases
import vllm_engine
import vllm_process
from demo_model import needs_demo_model
from real_cases import NEW, WISHES
from vllm_engine import generate, tokens

from sparsesteer.serving import SpecStore, status

pytestmark = [pytest.mark.vllm, needs_demo_model]
ENGINE = {"max_num_seqs": 32, "max_model_len": 512, "specs": {}}


class Given:
    """The requests, the answers to them, and what an engine is started with."""

    def __init__(self, folder):
        self.model = real_cases.write_model(folder / "model")
        self.prompts = real_cases.prompts(folder / "model")
        self.specs = real_cases.specs(self.model, self.prompts)
        self.specs_folder = folder / "specs"
        for name, spec in self.specs.items():
            SpecStore(self.specs_folder).add(spec, name)
        self.files = {"model": str(folder / "model"), "sites": []}
        self.steering = {"specs": str(self.specs_folder)}
        self.expected = [self.answer(*each) for each in zip(self.prompts, WISHES, strict=True)]

    def answer(self, prompt, wish):
        return real_cases.expected(self.model, self.specs, prompt, wish)

    def engine(self, **options):
        return vllm_engine.engine(self.files, steering=self.steering, **ENGINE, **options)

    def answers(self, llm):
        return tokens(generate(llm, self.prompts, WISHES, NEW))


@pytest.fixture(scope="session")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    (folder / "model").mkdir()
    return Given(folder)


def test_prompts_in_chunks(given):
    """Also that steering shows in the answers, else nothing here would say anything."""
    with given.engine(max_num_batched_tokens=48) as llm:
        assert given.answers(llm) == given.expected
        plain = tokens(generate(llm, given.prompts, [None] * len(WISHES), NEW))
        assert status(llm)["unsteered_requests"] == 0
    for wish, steered, unsteered in zip(WISHES, given.expected, plain, strict=True):
        assert (steered != unsteered) == (wish is not None), wish


@pytest.mark.slow
def test_whole_prompts_and_then_from_the_cache(given):
    with given.engine() as llm:
        assert given.answers(llm) == given.expected == given.answers(llm)


@pytest.mark.slow
def test_preempted_requests(given, monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted, original = [], Scheduler._preempt_request
    monkeypatch.setattr(Scheduler, "_preempt_request", lambda *a, **k: (preempted.append(1), original(*a, **k))[1])
    with given.engine(num_gpu_blocks_override=24, block_size=16) as llm:
        assert given.answers(llm) == given.expected
    assert len(preempted) >= 3


SHARERS = (None, "set", "set-generated", "two-sites", "scale-prompt", "set@0.5")


@pytest.mark.slow
def test_every_pair_of_requests_that_might_share_cached_blocks(given):
    """Each spec after each other one, the second with whatever the cache has of the first."""
    prompt = given.prompts[-1]
    expected = {wish: given.answer(prompt, wish) for wish in SHARERS}
    with given.engine() as llm:
        for first in SHARERS:
            for second in SHARERS:
                llm.reset_prefix_cache()
                assert tokens(generate(llm, [prompt], [first], NEW)) == [expected[first]]
                assert tokens(generate(llm, [prompt], [second], NEW)) == [expected[second]], (first, second)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        # nine heads are divided by three
        pytest.param(
            {"tensor_parallel_size": 3}, marks=pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="1 core")
        ),
        {"enforce_eager": False},
    ],
    ids=["three ranks", "compiled"],
)
def test_other_processes(tmp_path, given, options):
    limits = {name: value for name, value in ENGINE.items() if name != "specs"}
    found = vllm_process.run(tmp_path, given.files, given.specs_folder, given.prompts, WISHES, NEW, **limits, **options)
    vllm_process.check_exact(found, given.expected)
