"""What the scheduler does to requests: few slots, preemption, sharing of the cache; and an engine that is idle."""

import pytest
import serving_cases
import vllm_engine
from serving_cases import prompts
from vllm_engine import NEW, WISHES, engine, generate, tokens

from sparsesteer.serving import status

files, wanted = vllm_engine.files, vllm_engine.wanted
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]


def test_requests_wait_in_the_scheduler_until_there_is_room_for_their_spec(files, wanted):
    with engine(files[1], steering={"slots": 3}) as llm:
        assert tokens(generate(llm, wanted[0], WISHES, NEW)) == wanted[1]
        figures = status(llm)
    assert figures["evictions"] > 0 and figures["unsteered_requests"] == 0 and figures["resident"] <= 3
    assert figures["core"]["in_use"] == figures["core"]["requests"] == 0


def test_a_request_that_waits_for_room_can_be_cancelled(files, wanted):
    """With one slot: of three requests with other specs the second one never runs."""
    with engine(files[1], steering={"slots": 1}) as llm:
        core = llm.llm_engine
        for wish in ("set", "gated", "last"):
            params = vllm_engine.vllm.SamplingParams(
                temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False, extra_args={"sparsesteer": wish}
            )
            core.add_request(wish, {"prompt_token_ids": wanted[0][1]}, params)
        core.step()
        assert status(llm)["core"]["waiting"] == 2
        core.abort_request(["gated"])
        answers = {}
        while core.has_unfinished_requests():
            answers |= {o.request_id: list(o.outputs[0].token_ids) for o in core.step() if o.finished}
        assert answers.keys() == {"set", "last"} and status(llm)["core"]["requests"] == 0
    for wish, answer in answers.items():
        assert answer == serving_cases.expected(files[0], wanted[0][1], wish, NEW)


def test_preempted_requests_go_on_as_they_began(files, wanted, monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted, original = [], Scheduler._preempt_request
    monkeypatch.setattr(Scheduler, "_preempt_request", lambda *a, **k: (preempted.append(1), original(*a, **k))[1])
    with engine(files[1], num_gpu_blocks_override=16, max_model_len=128) as llm:
        assert tokens(generate(llm, wanted[0], WISHES, NEW)) == wanted[1]
    assert len(preempted) >= 3


def test_an_idle_plugin_leaves_every_bit(files):
    found = []
    for declared in (True, False):
        with engine(files[1], declared=declared) as llm:
            found.append(logprobs(llm, prompts(6)))
    assert found[0] == found[1]


def logprobs(llm, given):
    """Tokens and what stood beside them, as numbers."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=8, logprobs=3, detokenize=False, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in given], params, use_tqdm=False)
    return [[{t: each.logprob for t, each in step.items()} for step in o.outputs[0].logprobs] for o in outputs]


@pytest.fixture(scope="module")
def sharing(files):
    with engine(files[1]) as llm:
        yield llm


def once(llm, prompt, wish, new=NEW):
    [output] = generate(llm, [prompt], [wish], new)
    return list(output.outputs[0].token_ids), output.num_cached_tokens


PROMPT = prompts(1, 100, 101, seed=8)[0]  # 100 tokens, 3 full blocks of 32


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (None, None, 96),
        ("set", None, 0),
        (None, "set", 0),
        ("set", "set", 96),
        ("set", "set@0.5", 0),
        ("set", "gated", 0),
        (None, "add-generated", 96),
        ("add-generated", None, 96),
        ("add-generated", "add-generated@0.7", 96),
        ("last", None, 96),  # the last token is outside of the full blocks
        ("from-second", None, 0),
        ("two-sites-prompt", "two-sites-prompt", 96),
    ],
)
def test_blocks_are_shared_exactly_where_steering_is_the_same(sharing, files, first, second, shared):
    sharing.reset_prefix_cache()
    assert once(sharing, PROMPT, first)[1] == 0
    got, cached = once(sharing, PROMPT, second)
    sharing.reset_prefix_cache()
    assert cached == shared
    assert got == once(sharing, PROMPT, second)[0]


def test_steered_answers_that_are_sent_back_unsteered_share_the_prompt_alone(sharing):
    sharing.reset_prefix_cache()
    answer, _ = once(sharing, PROMPT, "add-generated", 60)
    got, cached = once(sharing, PROMPT + answer, None)
    sharing.reset_prefix_cache()
    assert cached == 96  # not 128: the block with tokens 100 to 127 was steered
    assert got == once(sharing, PROMPT + answer, None)[0]


def test_prompts_of_other_lengths_share_what_is_steered_alike(sharing):
    """A conversation that goes on: its earlier turns were steered as prompt, and are again."""
    sharing.reset_prefix_cache()
    once(sharing, PROMPT, "two-sites-prompt", 2)
    assert once(sharing, PROMPT + [7] * 40, "two-sites-prompt", 2)[1] == 96
