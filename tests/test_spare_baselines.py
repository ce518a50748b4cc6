"""What SPARE is compared with: each equal to its definition, written out, at the last token of the prompt alone."""

import numpy as np
import pytest
import torch
from conflict_models import conflicts, model, sae, tokenizer

import sparsesteer as ss
from sparsesteer.methods.baselines import (
    ActAdd,
    AddOnly,
    Control,
    InContext,
    InputIndependent,
    RandomFeatures,
    RemoveOnly,
    SpareControl,
    SpectralEditing,
    TaskVector,
)
from sparsesteer.methods.spare import Conflict
from sparsesteer.methods.spare.answering import Answerer
from sparsesteer.methods.spare.collection import Collection

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

LAYERS = (0, 2)
SIDES = ("context", "memory")


@pytest.fixture(scope="module")
def world():
    """(answerer, conflicts, SPARE) of a tiny model."""
    the_model, the_tokenizer = model(), tokenizer()
    examples = conflicts(the_model, the_tokenizer, n=26)
    saes = {layer: sae(layer) for layer in LAYERS}
    spare = ss.SPARE.fit(the_model, the_tokenizer, saes, examples, k=12, max_new_tokens=4, batch_size=4, progress=False)
    asked = [Conflict.of(each, i) for i, each in enumerate(examples)]
    return Answerer(the_model, the_tokenizer, {}, 4), asked, spare


def collected(seed=0, width=6, n=24):
    """(a collection at sites 0 and "b", its conflicts): three answers to each of eight questions."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.tensor([(1, 0, -1, 0, 1, 1)[i % 6] for i in range(n)], dtype=torch.int8)
    kept = int((sources != -1).sum())
    states = {site: torch.randn(kept, width, generator=generator) for site in (0, "b")}
    asked = [Conflict(f"q{i // 3}", "c", ("a",), ("b",)) for i in range(n)]
    return Collection(["x"] * n, sources, states, None), asked


def hidden(width=6, n=5, seed=9):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def edited(control, toward, site, h):
    return control.changes(toward)[site](h)


@pytest.mark.parametrize("toward", SIDES)
def test_spare_answers_as_under_steer(world, toward):
    answerer, asked, spare = world
    found = SpareControl(spare, alpha=1.5).answers(answerer, asked[:7], toward)
    with ss.steer(answerer.model, spare.plan(toward, 1.5), positions="last_prompt"):
        want, _ = answerer.answers(asked[:7])
    assert found == want
    assert found != Control().answers(answerer, asked[:7], toward) == answerer.answers(asked[:7])[0]


def test_only_the_last_token_of_the_first_call_is_changed(world):
    answerer, asked, spare = world
    ids, mask = answerer.padded([each.prompt for each in asked[:3]])
    control = ActAdd({0: torch.ones(32)})
    with torch.no_grad():
        plain = answerer.model.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
        with control.apply(answerer.model, "context"):
            first, again = (
                answerer.model.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
                for _ in range(2)
            )
    assert torch.equal(first[:, :-1], plain[:, :-1]) and torch.equal(again, plain)
    torch.testing.assert_close(first[:, -1], plain[:, -1] + 1)


def test_an_sae_alone_is_steered_at_its_own_site(world):
    answerer, asked, _ = world
    examples = [each.as_json() for each in asked]
    alone = ss.SPARE.fit(
        answerer.model, answerer.tokenizer, sae(0, site="blocks.0.hook_resid_post"), examples,
        k=12, max_new_tokens=4, progress=False,
    )  # fmt: skip
    for control in (SpareControl(alone), RandomFeatures(alone)):
        changes = control.changes("memory")
        assert len(changes) == 1
        with control.apply(answerer.model, "memory"):
            pass


@pytest.mark.parametrize("site", [0, "b"])
def test_task_vector_and_act_add(site):
    found, _ = collected()
    states, labels = found.states[site].double(), found.labels
    mean = {"context": states[labels == 1].mean(0), "memory": states[labels == 0].mean(0)}
    h = hidden()
    for toward, away in (SIDES, SIDES[::-1]):
        torch.testing.assert_close(edited(TaskVector.fit(found), toward, site, h), mean[toward].float().expand(5, 6))
        want = h + (1.5 * (mean[toward] - mean[away])).float()
        torch.testing.assert_close(edited(ActAdd.fit(found, [site], scale=1.5), toward, site, h), want)


def spectral_by_loops(found, asked, site, toward, h, kept, length):
    """SEA's equations, one state after the other."""
    phi = (lambda x: x) if length is None else lambda x: np.exp(-(x**2) / (2 * length**2))

    def back(y, x):
        return y if length is None else np.sign(x) * np.sqrt(-2 * length**2 * np.log(np.clip(y, 1e-4, 1)))

    rows = iter(found.states[site].double().numpy())
    answered = [(asked[i].question, int(s), next(rows)) for i, s in enumerate(found.sources) if s != -1]
    want = 1 if toward == "context" else 0
    pairs = [(a, b) for qa, sa, a in answered for qb, sb, b in answered if qa == qb and sa == want and sb == 1 - want]
    covariance = [sum(np.outer(phi((p + q) / 2), phi((p, q)[k])) for p, q in pairs) / len(pairs) for k in (0, 1)]
    projections = []
    for number, omega in enumerate(covariance):
        u, s, _ = np.linalg.svd(omega)
        total, count = 0.0, 0
        while total < kept * (s**2).sum() - 1e-12:
            total, count = total + s[count] ** 2, count + 1
        columns = u[:, :count] if number == 0 else u[:, count:]
        projections.append(columns @ columns.T)
    changed = []
    for x in h.double().numpy():
        y = sum(back(p @ phi(x), x) for p in projections)
        changed.append(y * np.linalg.norm(x) / np.linalg.norm(y))
    return torch.tensor(np.stack(changed)).float()


@pytest.mark.parametrize("toward", SIDES)
@pytest.mark.parametrize(("kept", "length"), [(0.9, None), (0.5, None), (0.9, 1.0), (0.99, 3.0)])
def test_spectral_editing(kept, length, toward):
    found, asked = collected(n=48)
    control = SpectralEditing.fit(found, asked, kept=kept, length_scale=length)
    assert control.name == ("SEA linear" if length is None else "SEA SqExp")
    h = hidden()
    got = edited(control, toward, "b", h)
    torch.testing.assert_close(got, spectral_by_loops(found, asked, "b", toward, h, kept, length))
    torch.testing.assert_close(got.norm(dim=-1), h.norm(dim=-1))
    assert (got - h).norm() > 0.1


def delta(control, toward, site, h):
    return edited(control, toward, site, h) - h


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("toward", SIDES)
def test_ablations_are_parts_of_the_edit(world, toward, form):
    _, _, spare = world
    away = SIDES[1 - SIDES.index(toward)]
    h = hidden(32) * 2
    for site in LAYERS:
        the_sae, known = spare.saes[site], spare.statistics[site]
        mean = {"context": known.mean_context, "memory": known.mean_memory}
        z = torch.relu((h - the_sae.b_dec) @ the_sae.W_enc + the_sae.b_enc)
        lowered, raised = (spare.features(side)[site] for side in (away, toward))
        assert lowered and raised
        inside, outside = (1.3, 1) if form == "code" else (1, 1.3)
        minus = outside * torch.minimum(z, inside * mean[away])[:, lowered] @ the_sae.W_dec[lowered]
        plus = outside * (inside * mean[toward] - z).clamp(min=0)[:, raised] @ the_sae.W_dec[raised]
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(delta(RemoveOnly(spare, 1.3, form), toward, site, h), -minus, **close)
        torch.testing.assert_close(delta(AddOnly(spare, 1.3, form), toward, site, h), plus, **close)
        torch.testing.assert_close(delta(SpareControl(spare, 1.3, form), toward, site, h), plus - minus, **close)
        fixed = mean[toward][raised] @ the_sae.W_dec[raised] - mean[away][lowered] @ the_sae.W_dec[lowered]
        torch.testing.assert_close(
            delta(InputIndependent(spare, 1.3, form), toward, site, h), (1.3 * fixed).expand(5, 32), **close
        )


def test_random_features_are_as_many_others_with_an_edit_as_long(world):
    _, _, spare = world
    control, other = RandomFeatures(spare, 1.3, seed=1), RandomFeatures(spare, 1.3).with_seed(2)
    h = hidden(32) * 2
    for site in LAYERS:
        counts = {side: len(spare.features(side)[site]) for side in SIDES}
        selected = {f for side in SIDES for f in spare.features(side)[site]}
        toward = {side: control.plans[side][site].features.tolist() for side in SIDES}
        difference = spare.statistics[site].mean_difference
        assert set(toward["context"]) == set(toward["memory"]) and not selected & set(toward["memory"])
        assert [int((difference[toward["memory"]] * sign > 0).sum()) for sign in (1, -1)] == list(counts.values())
        assert set(toward["memory"]) != set(other.plans["memory"][site].features.tolist())
        for side in SIDES:
            ours, random = (delta(each, side, site, h) for each in (SpareControl(spare, 1.3), control))
            torch.testing.assert_close(random.norm(dim=-1), ours.norm(dim=-1), rtol=1e-4, atol=1e-4)
            assert (random - ours).norm() > 0.1


def test_demonstrations_answer_as_the_model_should(world):
    answerer, asked, _ = world
    pool = [
        Conflict(f"q{i}?", f"sub {i}", (f"s{i}",), (f"o{i}",), org_context=f"org {i}") for i in range(9)
    ]  # fmt: skip
    control = InContext(pool, shots=4, seed=1)
    for toward, letter in (("context", "s"), ("memory", "o")):
        shown = [control.shown(each, toward) for each in asked[:3]]
        assert all(each.demonstrations == shown[0].demonstrations for each in shown)
        assert len({each.question for each in shown[0].demonstrations}) == 4
        for each in shown[0].demonstrations:
            number = each.question[1]
            assert (each.context, each.answer) == (f"sub {number}", letter + number)
        assert shown[0].prompt.endswith(f"context: {asked[0].sub_context}\nquestion: {asked[0].question}\nanswer:")
    other = control.with_seed(7).shown(asked[0], "context")
    assert other.demonstrations != control.shown(asked[0], "context").demonstrations
    assert len(control.answers(answerer, asked[:2], "memory")) == 2


def one_sided():
    found, asked = collected()
    return Collection(found.answers, found.sources.clamp(max=0), found.states, None), asked


def other_questions():
    found, asked = collected()
    return found, [Conflict(f"q{i}", "c", ("a",), ("b",)) for i, _ in enumerate(asked)]


WRONG = {
    "un-fit task vector": (lambda w: TaskVector({}), ValueError, r"means of context and of memory .* fit makes them"),
    "un-fit difference": (lambda w: ActAdd({}), ValueError, "ActAdd: a vector for each site is needed.*fit makes them"),
    "un-fit projections": (lambda w: SpectralEditing({}, None), ValueError, "SEA: projections .* fit makes them"),
    "matrix": (lambda w: ActAdd({0: torch.ones(2, 2)}), TypeError, "at 0 should be a floating-point vector"),
    "NaN vector": (lambda w: ActAdd({0: torch.tensor([1, torch.nan])}), ValueError, "vector at 0 has NaN"),
    "no such site": (lambda w: ActAdd.fit(collected()[0], [3]), ValueError, r"no states .* at 3; .* at \[0, 'b'\]"),
    "one kind": (lambda w: TaskVector.fit(one_sided()[0]), ValueError, "both kinds are needed, none came from context"),
    "one kind, SEA": (lambda w: SpectralEditing.fit(*one_sided()), ValueError, "SEA: answers of both kinds are needed"),
    "no pairs": (lambda w: SpectralEditing.fit(*other_questions()), ValueError, "no question was answered from"),
    "other conflicts": (lambda w: SpectralEditing.fit(collected()[0], []), ValueError, "24 answers .* got 0 conflicts"),
    "kept": (lambda w: SpectralEditing.fit(*collected(), kept=0), ValueError, "kept should be above 0"),
    "length": (lambda w: SpectralEditing.fit(*collected(), length_scale=0.0), ValueError, "length_scale should be pos"),
    "shots": (lambda w: InContext(w[1][:2], shots=3), ValueError, "shots should be from 1 to 2"),
    "demonstrated": (lambda w: InContext(w[1], 1).with_seed(0).shown(InContext(w[1], 1, 0).picked[0], "memory"),
                     ValueError, "is demonstrated; ask other questions"),
    "direction": (lambda w: Control().answers(*w[:2], "truth"), ValueError, "toward should be one of context, memory"),
    "model lacks it": (lambda w: ActAdd({9: torch.ones(32)}).answers(*w[:2], "memory"), ValueError, "no block 9"),
    "too many": (lambda w: RandomFeatures(w[2].with_selection(k=60)), ValueError, "are to be drawn"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_told(world, call, error, message):
    with pytest.raises(error, match=message):
        call(world)
