"""Prompts that are read once: the same tokens as model.generate writes under the same steering, batch by batch."""

import pytest
import torch
from conflict_models import model, sae, tokenizer

import sparsesteer as ss
from sparsesteer.methods.baselines import ActAdd, Control, SpareControl
from sparsesteer.methods.evaluation.prefilled import PrefilledAnswerer
from sparsesteer.methods.evaluation.trials import answers_of
from sparsesteer.methods.spare import answering
from sparsesteer.methods.spare.conflicts import Conflict, Demonstration

SITES = (0, 2)
NEW = 6

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


@pytest.fixture(scope="module")
def world(one_thread_throughout):
    """(model, tokenizer, SPARE of two blocks)."""
    saes = {site: sae(site) for site in SITES}
    statistics = []
    for i in range(3):
        generator = torch.Generator().manual_seed(i)
        statistics.append({site: 3 * torch.rand(saes[site].d_sae, generator=generator) for site in SITES})
    return model(), tokenizer(), ss.SPARE.from_statistics(saes, *statistics, k=40)


def asked(shared=True, n=7):
    """Conflicts of different lengths, behind the same demonstrations or none."""
    shown = (Demonstration("it was so", "who was it", "No1"), Demonstration("it is", "what", "9")) if shared else ()
    return [
        Conflict(f"who {i * 'so '}is {i}", f"it was {'abcdefg'[i]}" + i % 3 * " x", (f"{i}",), ("b",), "", shown)
        for i in range(n)
    ]


def tokens_of(answerer, monkeypatch, run):
    """The new tokens of the rows that ``run`` lets the model write, up to the first that ends an answer."""
    written = []
    generate = answerer.model.generate

    def watched(ids, **options):
        found = generate(ids, **options)
        written.extend(found[:, ids.shape[1] :].tolist())
        return found

    with monkeypatch.context() as patch:
        patch.setattr(answerer.model, "generate", watched)
        run()
    return [cut(row, answerer.stops) for row in written]


def cut(row, stops):
    ends = [place for place, token in enumerate(row) if token in stops]
    return row[: ends[0] + 1] if ends else row


@pytest.mark.parametrize("toward", ["context", "memory"])
@pytest.mark.parametrize("shared", [True, False], ids=["demonstrations", "bare"])
def test_tokens_are_those_of_generate_under_the_same_steering(world, toward, shared, monkeypatch):
    the_model, the_tokenizer, spare = world
    plan = spare.plan(toward, 2.0)
    conflicts = asked(shared)
    answerer = PrefilledAnswerer(the_model, the_tokenizer, NEW)
    prompts = [conflict.prompt for conflict in conflicts]
    assert len({len(prompt) for prompt in prompts}) > 2  # so that some are padded

    def one_by_one():
        for prompt in prompts:
            ids = the_tokenizer(prompt, return_tensors="pt").input_ids
            options = {"do_sample": False, "eos_token_id": answerer.stops, "pad_token_id": 0, "max_new_tokens": NEW}
            with ss.steer(the_model, plan, positions="last_prompt"):
                the_model.generate(ids, **options)

    def read_once():
        answerer.prepare(prompts)
        with ss.steer(the_model, plan, positions="last_prompt"):
            answerer.read(answerer.begun(prompts), {})

    def unsteered():
        answerer.read(answerer.begun(prompts), {})

    want = tokens_of(answerer, monkeypatch, one_by_one)
    assert len(want) == len(prompts)
    assert tokens_of(answerer, monkeypatch, read_once) == want
    assert tokens_of(answerer, monkeypatch, read_once) == want  # the cache is as it was
    assert tokens_of(answerer, monkeypatch, unsteered) != want


def test_a_control_answers_as_it_does_without_the_cache(world):
    the_model, the_tokenizer, spare = world
    conflicts = asked()
    plain = answering.Answerer(the_model, the_tokenizer, {}, 5)  # no answer that is right is longer
    cached = PrefilledAnswerer(the_model, the_tokenizer, NEW)
    vectors = {1: 3 * torch.randn(32, generator=torch.Generator().manual_seed(0))}
    for control in (Control(), SpareControl(spare, 3.0), ActAdd(vectors)):
        for toward in ("context", "memory"):
            want = [control.answers(plain, [conflict], toward)[0] for conflict in conflicts]
            assert answers_of(control, cached, conflicts, toward, batch=3) == want


def test_what_prompts_share_is_read_once(world, monkeypatch):
    the_model, the_tokenizer, _ = world
    answerer = PrefilledAnswerer(the_model, the_tokenizer, NEW)
    widths = []
    forward = the_model.model.forward

    def watched(input_ids=None, **options):
        widths.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(the_model.model, "forward", watched)
    prompts = [conflict.prompt for conflict in asked()]
    answerer.prepare(prompts)
    lengths = [len(the_tokenizer(prompt).input_ids) for prompt in prompts]
    (rows, shared), (n, rest) = widths
    assert (rows, n) == (1, len(prompts)) and shared > 50 and shared + rest == max(lengths) - 2
    answerer.read(answerer.begun(prompts), {})
    assert widths[2] == (len(prompts), 2) and all(width == (len(prompts), 1) for width in widths[3:])


def test_prompts_are_read_before_a_steering_is_entered(world):
    answerer = PrefilledAnswerer(*world[:2], NEW, most_batches=1)
    with pytest.raises(RuntimeError, match=r"call prepare\(prompts\) before steering"):
        answerer.answers(asked())
    answerer.prepare([conflict.prompt for conflict in asked()])
    answerer.prepare(["another prompt"])
    with pytest.raises(RuntimeError, match="were not read yet"):
        answerer.answers(asked())
    with pytest.raises(ValueError, match="prompts of 2 tokens or fewer"):
        answerer.prepare(["a"])


def test_the_model_stops_where_an_answer_is_too_long_to_be_right(world):
    answerer = PrefilledAnswerer(*world[:2], 50)
    conflicts = asked()
    assert answerer.answer_length(conflicts[0]) == 2  # a space and a character
    lengths = [len(answer) for answer in answers_of(Control(), answerer, conflicts, "memory")]
    assert 0 < max(lengths) <= 5
