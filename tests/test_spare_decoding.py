"""CAD and DoLa choose the tokens that their equations choose, computed prompt by prompt without a cache."""

import pytest
import torch
from conflict_models import conflicts, gemma, model, tokenizer

from sparsesteer.methods.baselines import ContextAwareDecoding, ContrastingLayers, Control
from sparsesteer.methods.baselines.decoding import contrasted, without_context
from sparsesteer.methods.spare import Conflict, Demonstration
from sparsesteer.methods.spare.answering import Answerer

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

N_NEW = 3


@pytest.fixture(scope="module", params=[model, gemma], ids=["llama", "gemma2"])
def world(request):
    the_model, the_tokenizer = request.param(), tokenizer()
    asked = [Conflict.of(each, i) for i, each in enumerate(conflicts(the_model, the_tokenizer, n=4))]
    shown = (Demonstration("far away it was 7", "who is it", "seven"),)
    asked[2:] = [Conflict(**{**vars(each), "demonstrations": shown}) for each in asked[2:]]
    return Answerer(the_model, the_tokenizer, {}, N_NEW), asked


def written(answerer, ids, next_scores):
    """The first line behind ids, each token the largest of what ``next_scores`` gives for those so far."""
    start = len(ids)
    for _ in range(N_NEW):
        token = int(next_scores(ids).argmax())
        ids = [*ids, token]
        if token in answerer.stops:
            break
    return answerer.tokenizer.decode(ids[start:], skip_special_tokens=True).strip().split("\n")[0].strip()


def last_log_p(answerer, ids):
    with torch.no_grad():
        return answerer.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize(("toward", "alpha"), [("context", 2.5), ("memory", -0.8)])
def test_context_aware_decoding(world, toward, alpha):
    answerer, asked = world
    control = ContextAwareDecoding({"context": 2.5, "memory": -0.8})
    want = []
    for each in asked:
        ids, bare = (answerer.tokenizer(text)["input_ids"] for text in (each.prompt, without_context(each)))

        def scores(so_far, ids=ids, bare=bare):
            without = last_log_p(answerer, bare + so_far[len(ids) :])
            return (1 + alpha) * last_log_p(answerer, so_far) - alpha * without

        want.append(written(answerer, ids, scores))
    assert control.answers(answerer, asked, toward) == want
    assert want != Control().answers(answerer, asked, toward)


def test_without_context_nothing_of_it_is_left(world):
    each = world[1][2]
    assert without_context(each) == f"question: who is it\nanswer: seven\n\nquestion: {each.question}\nanswer:"


def dola_scores(answerer, ids, layers, alpha, plausible):
    """DoLa's equations for the token behind ids, probability by probability."""
    the_model = answerer.model
    cap = getattr(the_model.config, "final_logit_softcapping", None)
    with torch.no_grad():
        out = the_model(torch.tensor([ids]), output_hidden_states=True)
        mature = out.logits[0, -1].double().softmax(-1)
        best, chosen = -1.0, None
        for layer in layers:
            logits = the_model.lm_head(out.hidden_states[layer + 1][0, -1]).double()
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            early = logits.softmax(-1)
            middle = (mature + early) / 2
            divergence = sum(float((p * (p / middle).log()).sum()) for p in (mature, early)) / 2
            if divergence > best:
                best, chosen = divergence, early
    scores = mature.log() - alpha * chosen.log()
    return torch.where(mature >= plausible * mature.max(), scores, -torch.inf)


@pytest.mark.parametrize(("toward", "alpha"), [("context", 6.0), ("memory", -8.0)])
@pytest.mark.parametrize("layers", [[0], [0, 1]])
def test_contrasting_layers(world, layers, toward, alpha):
    answerer, asked = world
    want = [
        written(
            answerer,
            answerer.tokenizer(each.prompt)["input_ids"],
            lambda ids: dola_scores(answerer, ids, layers, alpha, 0.01),
        )
        for each in asked
    ]
    control = ContrastingLayers(layers, plausible=0.01)
    assert control.answers(answerer, asked, toward) == want
    assert want != Control().answers(answerer, asked, toward)
    assert Control().answers(answerer, asked, toward) == answerer.answers(asked)[0]  # nothing is left behind


def test_unlikely_tokens_are_left_out_and_the_furthest_layer_is_chosen():
    mature = torch.tensor([0.6, 0.3, 0.05, 0.05]).log()
    premature = torch.tensor([[0.6, 0.3, 0.05, 0.05], [0.9, 0.02, 0.04, 0.04]]).log()
    found = contrasted(mature, premature, 1.0, 0.1)
    want = torch.tensor([0.6 / 0.9, 0.3 / 0.02]).log()
    torch.testing.assert_close(found[:2], want - want.max())
    assert (found[2:] == -torch.inf).all()


WRONG = {
    "alphas": (lambda w: ContextAwareDecoding({"context": 1.0}), ValueError, "one for context|for context and one for"),
    "NaN": (lambda w: ContrastingLayers([0], {"context": 1.0, "memory": torch.nan}), ValueError, "DoLa: alphas should"),
    "no layers": (lambda w: ContrastingLayers([]), ValueError, "layers to choose from are needed"),
    "plausible": (lambda w: ContrastingLayers([0], plausible=0), ValueError, "plausible should be above 0"),
    "no such layer": (lambda w: ContrastingLayers([7]).answers(*w, "memory"), ValueError, "there is no block 7"),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_told(world, call, error, message):
    with pytest.raises(error, match=message):
        call(world)
