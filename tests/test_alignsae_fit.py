"""``AlignSAE.fit``: states of a tiny model at the last tokens of prompts, kept on disk, and swaps at that place."""

from dataclasses import replace

import pytest
import torch
from alignsae_cases import SMALL
from tiny_model import WORDS, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import sparsesteer as ss
from sparsesteer.datasets.biographies import Question
from sparsesteer.methods.alignsae.answering import Answerer
from sparsesteer.methods.alignsae.controls import damaged, random_slot
from sparsesteer.methods.alignsae.released import released_answers
from sparsesteer.methods.alignsae.swapping import categories, swapped, swaps_of

pytestmark = pytest.mark.usefixtures("one_thread_throughout")
CONCEPTS = ("bird", "river", "stars")
PROMPTS = [f"{a} {b} {concept}" for concept in CONCEPTS for a in WORDS[:4] for b in WORDS[6:9]]
LABELS = [prompt.split()[-1] for prompt in PROMPTS]
ANSWERS = [WORDS[i % 5] for i in range(len(PROMPTS))]
SITE = 1


@pytest.fixture(scope="module")
def tiny(one_thread_throughout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder, chat=False)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def fitted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    return fit(tiny, folder=folder), folder


def fit(tiny, prompts=PROMPTS, labels=LABELS, site=SITE, **options):
    return ss.AlignSAE.fit(*tiny, prompts, labels, site, **{"answers": ANSWERS, "recipe": SMALL} | options)


def test_states_are_those_of_the_last_token(tiny, fitted):
    model, tokenizer = tiny
    aligned, folder = fitted
    from safetensors.torch import load_file

    kept = load_file(folder / "states" / "part-00000000.safetensors")
    for prompt, state in zip(PROMPTS[::5], kept["states.0"][::5], strict=True):
        hidden = model(**tokenizer(prompt, return_tensors="pt"), output_hidden_states=True).hidden_states
        torch.testing.assert_close(state, hidden[SITE + 1][0, -1], atol=1e-4, rtol=1e-4)
    assert aligned.concepts == CONCEPTS and kept["labels"].tolist() == [CONCEPTS.index(each) for each in LABELS]
    assert aligned.sae.site.hook_name == "blocks.1.hook_resid_post"
    assert float((aligned.concept_of(kept["states.0"]) == kept["labels"]).float().mean()) > 0.9
    first = aligned.first_token(kept["states.0"], "bird")
    assert set(first.tolist()) <= {Answerer(*tiny).first_tokens([word])[0] for word in set(ANSWERS)}


def test_the_same_call_reads_what_is_there(tiny, fitted, monkeypatch):
    aligned, folder = fitted
    monkeypatch.setattr(Answerer, "last_states", None)
    assert fit(tiny, folder=folder).sae.digest == aligned.sae.digest


def test_names_numbers_and_batches_give_the_same(tiny, fitted):
    numbers = [CONCEPTS.index(label) for label in LABELS]
    again = fit(tiny, labels=torch.tensor(numbers), concepts=CONCEPTS, batch_size=5)
    torch.testing.assert_close(again.sae.W_enc, fitted[0].sae.W_enc, atol=1e-2, rtol=1e-2)
    assert fit(tiny, labels=numbers, recipe=replace(SMALL, stage_two=1)).concepts == ("0", "1", "2")


def test_validation_prompts_choose_the_epoch(tiny):
    aligned = fit(tiny, validation=(PROMPTS[::2], LABELS[::2]))
    assert all("validation_slots" in row for row in aligned.about["history"][2:])


def test_folders_of_other_states_and_damaged_parts(tiny, fitted, tmp_path):
    _, folder = fitted
    with pytest.raises(ValueError, match="differs in prompts, prompts_sha256"):
        fit(tiny, PROMPTS[1:], LABELS[1:], answers=None, folder=folder)
    fit(tiny, folder=tmp_path, recipe=replace(SMALL, stage_two=1))
    part = tmp_path / "states" / "part-00000000.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged .* remove it, and it is collected again"):
        fit(tiny, folder=tmp_path, recipe=replace(SMALL, stage_two=1))
    part.unlink()
    fit(tiny, folder=tmp_path, recipe=replace(SMALL, stage_two=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "there are 0 prompts"),
        ({"prompts": [], "labels": []}, "there are no prompts"),
        ({"labels": ["bird"] * len(PROMPTS), "concepts": CONCEPTS}, r"concept 1 \(river\) has no example"),
        ({"labels": ["river", "stars", *["bird"] * (len(PROMPTS) - 2)]}, r"concept 1 \(river\) has one example"),
        ({"labels": ["fish", *LABELS[1:]], "concepts": CONCEPTS}, "the label 'fish' is none of the concepts"),
        ({"labels": [3] * len(PROMPTS), "concepts": CONCEPTS}, "labels should be from 0 to 2"),
        ({"answers": ANSWERS[1:]}, "36 prompts, and 35 labels or answers"),
        ({"site": 9}, "AlignSAE: .*9"),
    ],
)
def test_arguments_that_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        fit(tiny, **options)


def test_models_in_training_are_refused(tiny):
    model, tokenizer = tiny
    model.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            fit(tiny)
    finally:
        model.eval()
    with pytest.raises(TypeError, match="labels are all whole numbers or all names"):
        fit(tiny, labels=[0.5] * len(PROMPTS))


@pytest.fixture(scope="module")
def asked(tiny, fitted):
    """Questions whose right answers are what the model says to the same words about each concept."""
    answerer = Answerer(*tiny, max_new_tokens=3)
    about = [prompt.rsplit(" ", 1)[0] for prompt in PROMPTS[:12]]
    said = [answerer.answers([f"{each} {concept}" for each in about]) for concept in CONCEPTS]
    return answerer, [
        Question(f"{each} {concept}", number, answers, each)
        for each, *answers in zip(about, *said, strict=True)
        for number, concept in enumerate(CONCEPTS)
    ]


def test_swaps_act_at_the_last_token_of_the_layer_that_was_read(tiny, fitted, asked):
    aligned, _ = fitted
    answerer, questions = asked
    swaps = swaps_of(questions)
    outcomes = swapped(
        answerer, SITE, questions, swaps, lambda s, t: aligned.plan(s, t, 3.0), categories(questions, 3), batch_size=7
    )
    model, tokenizer = tiny
    for outcome in outcomes[::9]:  # by hand: one prompt, the block's output at its last token
        ids = tokenizer(questions[outcome.question].prompt, return_tensors="pt").input_ids
        plan = aligned.plan(outcome.source, outcome.target, 3.0)
        places = [ids.shape[1] - 1]

        def edit(module, args, output, plan=plan, places=places):
            if output.shape[1] == places[0] + 1:
                output = output.clone()
                output[:, -1] = ss.ops.steer(output[:, -1], plan)
            return output

        handle = model.model.layers[SITE].register_forward_hook(edit)
        new = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=1)[0, ids.shape[1] :]
        handle.remove()
        assert outcome.answer == tokenizer.decode(new, skip_special_tokens=True).strip()
    assert any(not outcome.kept for outcome in outcomes)


def test_what_a_swap_damages(fitted, asked):
    aligned, _ = fitted
    answerer, questions = asked
    right = [True] * len(questions)
    still = damaged(answerer, SITE, questions, right, lambda s, t: aligned.plan(s, t, 0.0, "move"), 3)
    assert [place for place, _ in still] == list(range(len(questions)))
    loud = damaged(answerer, SITE, questions, right, random_slot(aligned, 100.0, "slot"), 3)
    assert sum(wrong for _, wrong in loud) > len(questions) // 4
    assert damaged(answerer, SITE, questions, [False] * len(questions), random_slot(aligned, 1.0, "slot"), 3) == []


def test_released_injections_are_elsewhere(tiny, fitted, asked):
    """Both by hand: the decoded state as an embedding, and its change one block too late."""
    model, tokenizer = tiny
    aligned, _ = fitted
    answerer, questions = asked
    prompt = questions[0].prompt
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        h = model(ids, output_hidden_states=True).hidden_states[SITE + 1][0, -1:]
    z = h @ aligned.sae.W_enc + aligned.sae.b_enc
    z[:, -3], z[:, -2] = 0.0, 2.0
    decoded = z @ aligned.sae.W_dec + aligned.sae.b_dec
    for injection, module, new in (
        ("embedding", model.get_input_embeddings(), lambda last: decoded),
        ("off_by_one", model.model.layers[SITE + 1], lambda last: last + decoded - h),
    ):

        def edit(_, args, output, new=new):
            if output.shape[1] == ids.shape[1]:
                output = output.clone()
                output[:, -1] = new(output[:, -1])
            return output

        handle = module.register_forward_hook(edit)
        whole = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=1)
        handle.remove()
        wanted = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert released_answers(answerer, aligned, SITE, [prompt], 0, 1, 2.0, injection=injection) == [wanted]
    with pytest.raises(ValueError, match="injection should be one of embedding, off_by_one"):
        released_answers(answerer, aligned, SITE, [prompt], 0, 1, injection="trained")
