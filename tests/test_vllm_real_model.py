"""32 requests to SmolLM2-135M in one batch, token for token what Hugging Face generates under the hook."""

import os

import pytest
import real_cases
import serving_cases
import vllm_engine
import vllm_process
from demo_model import needs_demo_model
from real_cases import NEW, WISHES
from vllm_engine import generate, tokens

from sparsesteer.serving import SpecStore, status

pytestmark = [pytest.mark.vllm, needs_demo_model, pytest.mark.usefixtures("one_thread")]
ENGINE = {"max_num_seqs": 32, "max_model_len": 512, "specs": {}}


class Given:
    """The requests, what is known of the answers to them, and what an engine is started with."""

    def __init__(self, folder):
        self.model = real_cases.write_model(folder / "model")
        self.prompts = real_cases.prompts(folder / "model")
        self.specs = real_cases.specs(self.model, self.prompts)
        self.specs_folder = folder / "specs"
        for name, spec in self.specs.items():
            SpecStore(self.specs_folder).add(spec, name)
        self.files = {"model": str(folder / "model"), "sites": []}
        self._agreed = {}

    def engine(self, **options):
        return vllm_engine.engine(self.files, steering={"specs": str(self.specs_folder)}, **ENGINE | options)

    def expected(self, prompt, wish, answer):
        """The answer, if Hugging Face agrees; what it agreed to once is what it answers."""
        key = tuple(prompt), wish
        if key not in self._agreed:
            said = serving_cases.agreed(self.model, self.specs, prompt, wish, answer)
            if said != answer:
                return said
            self._agreed[key] = answer
        return self._agreed[key]

    def check(self, answers):
        expected = [self.expected(*each) for each in zip(self.prompts, WISHES, answers, strict=True)]
        assert answers == expected


@pytest.fixture(scope="session")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    (folder / "model").mkdir()
    return Given(folder)


def answers_of(llm, given):
    return tokens(generate(llm, given.prompts, WISHES, NEW))


def test_prompts_in_chunks(given):
    """Also that every spec shows in an answer, and that agreeing to an answer is generating it."""
    with given.engine(max_num_batched_tokens=48) as llm:
        answers = answers_of(llm, given)
        plain = tokens(generate(llm, given.prompts, [None] * len(WISHES), NEW))
        assert status(llm)["unsteered_requests"] == 0
    given.check(answers)
    changed = {wish for wish, steered, unsteered in zip(WISHES, answers, plain, strict=True) if steered != unsteered}
    assert None not in changed and {wish.partition("@")[0] for wish in changed} == given.specs.keys()
    for wish in ("set-generated", "two-sites@0.5"):
        i = WISHES.index(wish)
        assert answers[i] == serving_cases.greedy(given.model, given.prompts[i], NEW, given.specs, wish)


@pytest.mark.slow
def test_whole_prompts_and_then_from_the_cache(given):
    with given.engine() as llm:
        answers = answers_of(llm, given)
        assert answers_of(llm, given) == answers
    given.check(answers)


@pytest.mark.slow
def test_preempted_requests(given, monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted, original = [], Scheduler._preempt_request
    monkeypatch.setattr(Scheduler, "_preempt_request", lambda *a, **k: (preempted.append(1), original(*a, **k))[1])
    with given.engine(num_gpu_blocks_override=16, block_size=32, max_model_len=256) as llm:
        given.check(answers_of(llm, given))
    assert len(preempted) >= 3


SHARERS = (None, "set", "set-generated", "two-sites", "scale-prompt", "set@0.5")


@pytest.mark.slow
def test_every_pair_of_requests_that_might_share_cached_blocks(given):
    """Each spec after each other one, the second with whatever the cache has of the first."""
    prompt = given.prompts[-1]
    with given.engine() as llm:
        for first in SHARERS:
            for second in SHARERS:
                llm.reset_prefix_cache()
                generate(llm, [prompt], [first], 2)
                [answer] = tokens(generate(llm, [prompt], [second], NEW))
                assert answer == given.expected(prompt, second, answer), (first, second)


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
    given.check(found["outputs"])
    vllm_process.check_exact(found, found["outputs"])
