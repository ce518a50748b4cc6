"""Threads that use one model at once: a plan for all of them, or one for each."""

import threading
from queue import Queue

import models
import pytest
import torch
from models import plan, prompts
from test_hooks import hook_count

import sparsesteer as ss

pytestmark = pytest.mark.usefixtures("one_thread")

SITE = 1
N_ROUNDS = 15


@pytest.fixture
def llama():
    model = models.llama()
    model.generation_config.eos_token_id = None
    return model


def run_at_once(*functions):
    """Run each in a thread of its own; what one raises is raised here."""
    failures = []

    def guarded(function):
        try:
            with torch.no_grad():
                function()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def generate(model, ids):
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)


@torch.no_grad()
def test_each_thread_generates_with_its_own_plans(llama):
    """As in a server: contexts come and go in one thread while another is amid a call."""
    jobs = [
        ({SITE: plan(seed=1)}, "all", prompts(1, 4, seed=1)),
        ({SITE: plan(seed=2), "blocks.0.hook_resid_mid": plan(seed=4)}, "generated", prompts(2, 6, seed=2)),
        ({0: plan(seed=3), "blocks.1.attn.hook_z": plan(seed=5)}, "last_prompt", prompts(1, 5, seed=3)),
    ]
    expected = []
    for plans, positions, ids in jobs:
        with ss.steer(llama, plans, positions=positions):
            expected.append(generate(llama, ids))
    assert not torch.equal(expected[0][:, -4:], generate(llama, jobs[0][2])[:, -4:])
    plain_ids = prompts(1, 7, seed=4)
    plain = generate(llama, plain_ids)

    def serve(plans, positions, ids, wanted):
        for _ in range(N_ROUNDS):
            with ss.steer(llama, plans, positions=positions, this_thread_only=True):
                assert torch.equal(generate(llama, ids), wanted)

    def without():
        for _ in range(N_ROUNDS):
            assert torch.equal(generate(llama, plain_ids), plain)

    workers = [lambda job=job, wanted=wanted: serve(*job, wanted) for job, wanted in zip(jobs, expected, strict=True)]
    run_at_once(*workers, without)
    assert hook_count(llama) == 0


@torch.no_grad()
def test_nested_contexts_of_a_thread_keep_their_order_while_others_come_and_go(llama):
    first, second, ids = plan(seed=1), plan(seed=2), prompts()
    with ss.steer(llama, {SITE: [first, second]}):
        expected = llama(ids).logits
    stop = threading.Event()

    def steer_twice():
        try:
            for _ in range(60):
                with (
                    ss.steer(llama, {SITE: first}, this_thread_only=True),
                    ss.steer(llama, {SITE: second}, this_thread_only=True),
                ):
                    torch.testing.assert_close(llama(ids).logits, expected)
        finally:
            stop.set()

    def come_and_go():
        while not stop.is_set():
            with ss.steer(llama, {SITE: plan(seed=3)}, this_thread_only=True):
                pass

    run_at_once(steer_twice, come_and_go)


@torch.no_grad()
def test_a_context_steers_calls_of_other_threads_unless_told_otherwise(llama):
    """A streamer's reader holds the context while a thread of its own generates."""
    ids = prompts()
    plain = llama(ids).logits
    with ss.steer(llama, {SITE: plan()}):
        expected = llama(ids).logits
    for this_thread_only, wanted in ((False, expected), (True, plain)):
        results = Queue()
        with ss.steer(llama, {SITE: plan()}, this_thread_only=this_thread_only):
            run_at_once(lambda results=results: results.put(llama(ids).logits))
            torch.testing.assert_close(llama(ids).logits, expected)
        torch.testing.assert_close(results.get(), wanted)


@torch.no_grad()
def test_a_context_of_one_thread_may_be_entered_amid_anothers_call(llama):
    ids = prompts()
    plain = llama(ids).logits
    entered, amid = threading.Event(), threading.Event()

    def wait_amid_the_call(module, args, output):
        amid.set()
        assert entered.wait(60)

    handle = llama.model.layers[0].register_forward_hook(wait_amid_the_call)

    def call():
        torch.testing.assert_close(llama(ids).logits, plain)

    def enter():
        assert amid.wait(60)
        with ss.steer(llama, {SITE: plan()}, this_thread_only=True):
            entered.set()

    run_at_once(call, enter)
    handle.remove()


@torch.no_grad()
def test_hooks_that_another_thread_is_just_registering(llama):
    """torch adds a hook first, and then the note that it takes keyword arguments."""
    ids = prompts()
    plain = llama(ids).logits
    places = {"blocks.1.hook_resid_pre": plan(), "blocks.1.attn.hook_z": plan()}
    with ss.steer(llama, places, this_thread_only=True):
        notes = [module._forward_pre_hooks_with_kwargs for module in llama.modules()]
        kept = [dict(note) for note in notes]
        for note in notes:
            note.clear()
        run_at_once(lambda: torch.testing.assert_close(llama(ids).logits, plain))
        for note, before in zip(notes, kept, strict=True):
            note.update(before)
        assert not torch.equal(llama(ids).logits, plain)


@torch.no_grad()
def test_a_context_can_be_entered_again_in_another_thread(llama):
    ids = prompts()
    steering = ss.steer(llama, {SITE: plan()}, this_thread_only=True)
    with steering:
        expected = llama(ids).logits

    def again():
        with steering:
            torch.testing.assert_close(llama(ids).logits, expected)

    run_at_once(again)


@torch.no_grad()
def test_compiled_code_follows_the_thread():
    torch.compiler.reset()
    model, ids = models.Toy(), prompts()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    plain = model(ids)
    with ss.steer(compiled, {0: plan()}, this_thread_only=True):
        steered = compiled(ids)
        run_at_once(lambda: torch.testing.assert_close(compiled(ids), plain))
        torch.testing.assert_close(compiled(ids), steered)
    assert (steered - plain).abs().max() > 0.1
    torch.compiler.reset()
