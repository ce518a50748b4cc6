"""Steered requests of transformers' continuous batching, token by token what ``generate`` gives under the hook."""

import contextlib
import gc

import pytest
import torch
from serving_cases import expected, prompts, sae_at, specs, tiny_llama
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import sparsesteer as ss
from sparsesteer.serving import ServedSpec
from sparsesteer.serving.settings import DeclaredSite
from sparsesteer.serving.transformers_batching import SteeredBatching

pytestmark = pytest.mark.usefixtures("one_thread")

NEW = 12  # tokens
WISHES = [
    *(None, *specs(), "set@-0.5", "add-generated@0.7", "two-sites-prompt@2", "gated@0.5"),
    *("set", None, "last@2", "indices", "from-second@0.3"),
]
PAGE = 8  # tokens


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module", autouse=True)
def little_garbage():
    """Transformers collects it whenever a manager stops; what is there before these tests is not looked through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def wanted(model):
    given, threads = prompts(len(WISHES)), torch.get_num_threads()
    torch.set_num_threads(1)  # a module's fixture comes before the mark above
    answers = [expected(model, prompt, wish, NEW) for prompt, wish in zip(given, WISHES, strict=True)]
    torch.set_num_threads(threads)
    return given, answers


def manager_of(model, generation=None, **config):
    """A small one; batches of 48 tokens cut prompts into chunks."""
    small = {"num_blocks": 64, "page_size": PAGE, "max_batch_tokens": 48, "max_requests_per_batch": 8} | config
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0} | (generation or {})
    return model.init_continuous_batching(GenerationConfig(**options), ContinuousBatchingConfig(**small))


@contextlib.contextmanager
def batching(model, given=None, *, generation=None, config=None, **options):
    manager = manager_of(model, generation, **(config or {}))
    with SteeredBatching(manager, specs() if given is None else given, **options) as started:
        started.manager = manager
        yield started


def tokens(outputs):
    assert not [output.error for output in outputs if output.error]
    return [output.generated_tokens for output in outputs]


def prefix_matches(steered):
    """The lengths of all prefixes that are found from now on."""
    cache, found = steered.manager.batch_processor.cache, []
    search = cache.search_prefix_match

    def spy(*args):
        found.append(search(*args))
        return found[-1]

    cache.search_prefix_match = spy
    return found


def test_steering_shows_in_the_expected_tokens(model, wanted):
    """Else the tests below would say nothing."""
    for prompt, wish, want in zip(wanted[0], WISHES, wanted[1], strict=True):
        assert (want != expected(model, prompt, None, NEW)) == (wish is not None), wish


def test_a_mixed_batch_is_token_exact_round_after_round(model, wanted):
    with batching(model) as steered:
        for _ in range(2):  # the second time with what is left of the first one's cache
            assert tokens(steered.generate(wanted[0], WISHES)) == wanted[1]


def test_the_model_is_afterwards_as_it_was(model, wanted):
    modules, attention = dict(model.named_modules()), model.config._attn_implementation
    ids = torch.tensor([wanted[0][0]])
    before = model(ids).logits
    with batching(model) as steered:
        steered.generate(wanted[0][:2], WISHES[:2])
    assert dict(model.named_modules()) == modules and model.config._attn_implementation == attention
    assert torch.equal(model(ids).logits, before)


def test_requests_that_are_put_off_for_want_of_memory_come_out_the_same(model, wanted):
    """They lose their cache, and what they have generated is read again like a prompt."""
    with batching(model, config={"num_blocks": 12, "max_batch_tokens": 64}) as steered:
        processor, put_off = steered.manager.batch_processor, []
        offload = processor.offloading_manager.offload_requests
        processor.offloading_manager.offload_requests = lambda: put_off.append(1) or offload()
        assert tokens(steered.generate(wanted[0], WISHES)) == wanted[1]
    assert put_off


@pytest.mark.parametrize("wish", ["set", "add-generated", "from-second"])
def test_blocks_are_shared_up_to_the_first_steered_token(model, wish):
    prompt = prompts(1, 40, 41)[0]
    want = {each: expected(model, prompt, each, NEW) for each in (None, wish, "last")}
    whole = (len(prompt) - 1) // PAGE * PAGE
    shared = {"set": 0, "add-generated": whole, "from-second": 0, "last": whole}
    with batching(model) as steered:
        found = prefix_matches(steered)
        for each in (None, wish, "last", None, wish):
            assert tokens(steered.generate([prompt], [each])) == [want[each]], each
    assert found == [0, shared[wish], shared["last"], whole, shared[wish]]


def test_what_is_steered_is_shared_with_nobody(model):
    prompt = prompts(1, 40, 41)[0]
    answer = expected(model, prompt, "set", NEW)
    longer = prompt + answer
    with batching(model) as steered:
        found = prefix_matches(steered)
        assert tokens(steered.generate([prompt], ["set"])) == [answer]
        assert tokens(steered.generate([longer], [None])) == [expected(model, longer, None, NEW)]
        assert tokens(steered.generate([longer], ["set"])) == [expected(model, longer, "set", NEW)]
    assert found == [0, 0, 0]


def test_several_answers_to_one_request_are_all_steered(model, wanted):
    number = WISHES.index("gated")
    with batching(model, generation={"num_return_sequences": 3, "do_sample": True, "top_k": 1}) as steered:
        request = steered.add_request(wanted[0][number], "gated")
        outputs = [steered.manager.get_result(timeout=60) for _ in range(3)]
    assert {output.request_id.partition("__")[0] for output in outputs} == {request}
    assert tokens(outputs) == [wanted[1][number]] * 3


def test_a_spec_without_room_fails_its_request_alone(model, wanted):
    given, want = wanted[0][1], expected(model, wanted[0][1], "set", NEW)
    with batching(model, slots=1) as steered:
        first, second, third = steered.generate([given, given, given], ["set", "gated", None])
        assert first.generated_tokens == want and third.generated_tokens == expected(model, given, None, NEW)
        assert "all 1 slots hold specs in use" in second.error and second.generated_tokens == []
        assert tokens(steered.generate([given], ["gated"])) == [expected(model, given, "gated", NEW)]


def test_a_cancelled_request_gives_its_room_back(model, wanted):
    given = wanted[0][1]
    with batching(model, slots=1) as steered:
        request = steered.add_request(given, "set", max_new_tokens=200, streaming=True)
        assert steered.manager.get_result(timeout=60).request_id == request
        steered.manager.cancel_request(request)
        other = steered.add_request(given, None, max_new_tokens=1)
        while steered.manager.get_result(timeout=60).request_id != other:
            pass
        assert tokens(steered.generate([given], ["gated"])) == [expected(model, given, "gated", NEW)]


def test_a_spec_may_come_later(model, wanted, tmp_path):
    sae_at(1).save(tmp_path / "sae")
    later = ServedSpec(sae_at(1).plan(ss.Edit.set({3: 6.0, 7: 5.0})))
    with batching(model, {}, sites=[DeclaredSite(str(tmp_path / "sae"), features=8)]) as steered:
        assert tokens(steered.generate(wanted[0][:1], [None])) == wanted[1][:1]
        name = steered.register(later, "set")
        assert name == later.id
        assert tokens(steered.generate([wanted[0][1]] * 2, ["set", later.id])) == [wanted[1][1]] * 2
        with pytest.raises(ValueError, match="no site was declared after block 2"):
            steered.register(specs()["last"], "last")


def test_calls_of_other_threads_are_not_steered(model, wanted):
    ids = torch.tensor([wanted[0][0]])
    alone = model(ids).logits
    with batching(model) as steered:
        request = steered.add_request(wanted[0][1], "set", max_new_tokens=300, streaming=True)
        steered.manager.get_result(timeout=60)
        with steered.manager.pause():  # its last step steered all of its tokens
            assert torch.equal(model(ids).logits, alone)
        steered.manager.cancel_request(request)


def test_a_bad_wish_is_refused_and_the_loop_goes_on(model, wanted):
    with batching(model) as steered:
        for wish, error, message in (
            ("nobody", KeyError, "no spec 'nobody' is known; there are add-generated, "),
            ("set@1e9", ValueError, "strength should be between"),
            ("set@", ValueError, "should be 'NAME' or"),
            (3, ValueError, "should be text"),
            ("indices", ValueError, "index 2 is outside a prompt of 2 tokens"),
        ):
            with pytest.raises(error, match=message):
                steered.generate([[5, 6]], [wish])
        with pytest.raises(ValueError, match="1 prompts need as many wishes"):
            steered.generate([[5, 6]], [])
        assert tokens(steered.generate(wanted[0][:3], WISHES[:3])) == wanted[1][:3]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"use_async_batching": True}, "asynchronous batching; set use_async_batching=False"),
        ({"default_compile_level": 1}, "compilation; set default_compile_level=0"),
    ],
)
def test_what_was_never_tried_does_not_start(model, option, message):
    with pytest.raises(ValueError, match=message):
        SteeredBatching(manager_of(model, **option), specs())


def test_a_batching_is_for_one_manager_that_was_not_started(model, wanted):
    with pytest.raises(ValueError, match="neither specs nor sites"):
        SteeredBatching(manager_of(model), {})
    with batching(model) as steered:
        with pytest.raises(RuntimeError, match="entered already"):
            steered.__enter__()
        with pytest.raises(ValueError, match="a manager that was started"):
            SteeredBatching(steered.manager, specs())
    with pytest.raises(RuntimeError, match="takes no requests"):
        steered.add_request([5, 6], "set")


def test_a_block_that_is_not_there_or_of_another_width_is_named(model):
    far = ServedSpec({9: sae_at(1).plan(ss.Edit.set({1: 1.0}))})
    with pytest.raises(ValueError, match="there is no block 9"):
        SteeredBatching(manager_of(model), {"far": far})
    site = ss.Site(hook_name="blocks.1.hook_resid_post")
    narrow = ss.SAE(W_enc=torch.ones(64, 8), W_dec=torch.ones(8, 64), activation=ss.ReLU(), site=site)
    with pytest.raises(ValueError, match="the SAE after block 1 has width 64, not 128"):
        SteeredBatching(manager_of(model), {"narrow": ServedSpec(narrow.plan(ss.Edit.set({1: 1.0})))})


def test_other_insides_of_transformers_are_refused(model, monkeypatch):
    from transformers.generation.continuous_batching.scheduler import Scheduler

    monkeypatch.setattr(Scheduler, "add_waiting_request", lambda self, state, priority: None)
    with pytest.raises(RuntimeError, match="add_waiting_request takes state, priority, known is state"):
        SteeredBatching(manager_of(model), specs()).__enter__()
