"""Steered requests of one continuous batch, token by token what Hugging Face generates under the hook."""

import pytest
import vllm_engine
from serving_cases import expected, saes
from vllm_engine import NEW, WISHES, engine, generate, tokens

import sparsesteer as ss
from sparsesteer.serving import ServedSpec, remove, status
from sparsesteer.serving.vllm_frontend import store_of

files, wanted = vllm_engine.files, vllm_engine.wanted
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def llm(files):
    with engine(files[1], max_num_batched_tokens=64) as started:  # prompts come in chunks
        yield started


def test_steering_shows_in_the_expected_tokens(files, wanted):
    """Else the tests below would say nothing."""
    for prompt, wish, want in zip(*wanted[:1], WISHES, wanted[1], strict=True):
        assert (want != expected(files[0], prompt, None, NEW)) == (wish is not None), wish


def test_a_mixed_batch_is_token_exact_round_after_round(llm, wanted):
    for _ in range(2):  # the second time from the prefix cache
        assert tokens(generate(llm, wanted[0], WISHES, NEW)) == wanted[1]
    assert status(llm)["unsteered_requests"] == 0


@pytest.mark.parametrize("wish", ["nobody", "set@", "set@1e9", 3, {"id": "x"}, "indices"])
def test_the_front_end_refuses_a_bad_wish_and_the_engine_goes_on(llm, wanted, wish):
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="sparsesteer"):
        generate(llm, [[5, 6]], [wish], 2)
    assert tokens(generate(llm, wanted[0][:3], WISHES[:3], NEW)) == wanted[1][:3]


def test_the_core_refuses_what_no_front_end_looked_at(llm, wanted):
    """A front end that runs no Python, or a spec that went meanwhile; the engine's process answers with an error."""
    core = llm.llm_engine.engine_core.engine_core
    for wish in ("nobody", "indices", {"id": "x"}):
        params = vllm_engine.vllm.SamplingParams(extra_args={"sparsesteer": wish})
        request = llm.llm_engine.input_processor.process_inputs(
            "r", {"prompt_token_ids": [5, 6]}, vllm_engine.vllm.SamplingParams(), ("generate",)
        )
        request.sampling_params = params
        with pytest.raises(ValueError, match="no spec 'nobody'|index 2 is outside a prompt of 2|should be text"):
            core.preprocess_add_request(request)
    assert tokens(generate(llm, wanted[0][:3], WISHES[:3], NEW)) == wanted[1][:3]


def test_what_the_core_refuses_is_not_waited_for(llm, wanted):
    """A spec of which the front end alone has heard, such as a file that came into the folder after the start."""
    elsewhere = ServedSpec(saes()[1].plan(ss.Edit.set({77: 3.0})))
    store_of(llm.llm_engine.input_processor).add(elsewhere, "late")
    with pytest.raises(ValueError, match="no spec 'late' is known"):
        generate(llm, [[5, 6, 7]] * 2, [None, "late"], 2)
    assert not llm.llm_engine.has_unfinished_requests()
    assert tokens(generate(llm, wanted[0][:3], WISHES[:3], NEW)) == wanted[1][:3]


def test_the_worker_lives_on_when_it_cannot_steer(llm, wanted, monkeypatch, caplog):
    """It never comes to that unless the core's books are wrong; then the request is counted and named."""
    from sparsesteer.serving import residency

    def no_room(*args):
        raise residency.NoRoom("no room")

    before = status(llm)["unsteered_requests"]
    with monkeypatch.context() as patched:
        patched.setattr(residency.Residency, "acquire", no_room)
        generate(llm, wanted[0][:2], WISHES[:2], 2)
    assert status(llm)["unsteered_requests"] == before + 1
    assert "is not steered: no room" in caplog.text
    assert tokens(generate(llm, wanted[0][:3], WISHES[:3], NEW)) == wanted[1][:3]


def test_a_removed_spec_is_refused_and_nothing_is_left_in_use(llm):
    remove(llm, "last")
    with pytest.raises(Exception, match="no spec 'last'"):
        generate(llm, [[5, 6, 7]], ["last"], 2)
    generate(llm, [[5, 6, 7]], [None], 1)
    figures = status(llm)
    assert figures["in_use"] == 0 and figures["core"]["requests"] == 0


def test_a_vllm_that_is_not_as_it_was_tried_refuses_steered_requests_alone(llm):
    from sparsesteer.serving import vllm_frontend

    processor = llm.llm_engine.input_processor
    refuse = vllm_frontend.refuse_all(["x takes y"])
    for wish in (None, "set"):
        params = vllm_engine.vllm.SamplingParams(extra_args=None if wish is None else {"sparsesteer": wish})
        if wish is None:
            assert refuse(lambda *args: "validated", processor, params) == "validated"
        else:
            with pytest.raises(Exception, match="this version of vLLM cannot be steered: x takes y"):
                refuse(lambda *args: "validated", processor, params)
