"""SPARE from given statistics: which features are selected, what they are edited to, what is refused, files."""

import pytest
import torch
from models import N_LAYERS, WIDTH, llama, prompts, steered_by_hand
from small_sae import F, every_activation, hidden, make_sae

import sparsesteer as ss

NAN = float("nan")


def selected(mi, difference, **how):
    """(features of context, of memory) of an SAE with as many features."""
    mi, difference = torch.tensor(mi), torch.tensor(difference)
    f = len(mi)
    sae = ss.SAE(W_enc=torch.eye(f), W_dec=torch.eye(f), activation=ss.ReLU())
    spare = ss.SPARE.from_statistics(sae, mi, torch.ones(f), torch.ones(f), difference, **how)
    return spare.features("context"), spare.features("memory")


@pytest.mark.parametrize(
    ("mi", "difference", "how", "context", "memory"),
    [
        ([0.1, 0.4, 0.3, 0.2], [1.0, 1.0, -1.0, -1.0], {"k": 3}, [1], [2, 3]),
        ([0.1, 0.4, 0.3, 0.2], [1.0, 0.0, -1.0, -1.0], {"k": 2}, [], [2, 3]),  # the dead one is replaced
        ([0.1, 0.4, 0.3, 0.2], [0.0, 0.0, -1.0, 0.0], {"k": 4}, [], [2]),  # until there are no more
        ([0.1, 0.4, 0.3, 0.2], [0.0, 0.0, 0.0, 0.0], {"k": 2}, [], []),
        ([0.5, 0.5, 0.5, 0.5], [1.0, 1.0, -1.0, 1.0], {"k": 3}, [0, 1], [2]),  # ties by number
        ([0.25, 0.25, 0.25, 0.25], [1.0, 1.0, 1.0, 1.0], {"share": 0.5}, [0, 1, 2], []),  # exceeds, as the code
        ([0.25, 0.25, 0.25, 0.25], [1.0, 1.0, 1.0, 1.0], {"share": 0.49}, [0, 1], []),
        ([0.4, 0.3, 0.2, 0.1], [1.0, -1.0, 1.0, -1.0], {"share": 1e-9}, [0], []),
        ([0.4, 0.3, 0.2, 0.1], [1.0, -1.0, 1.0, -1.0], {"share": 1.0}, [0, 2], [1, 3]),
        ([0.4, 0.3, 0.2, 0.1], [0.0, -1.0, 1.0, -1.0], {"share": 0.5}, [2], [1]),  # counted with the dead one
        ([0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 1.0, -1.0], {"share": 0.5}, [], []),
        ([0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 1.0, -1.0], {"k": 1}, [0], []),
        ([0.4, 0.3], [1.0, -1.0], {"k": 9}, [0], [1]),
    ],
)
def test_selection(mi, difference, how, context, memory):
    assert selected(mi, difference, **how) == (context, memory)


def authors_loop(mi, expectation, share):
    """The published program, step by step."""
    order = sorted(range(len(mi)), key=lambda i: -mi[i])
    target, total, count = share * sum(mi[i] for i in order), 0.0, 0
    for i in order:
        total, count = total + mi[i], count + 1
        if total > target:
            break
    context, memory = [], []
    for i in order:
        if expectation[i] > 0:
            context.append(i)
        elif expectation[i] < 0:
            memory.append(i)
        if len(context) + len(memory) >= count:
            break
    return context, memory


@pytest.mark.parametrize("share", [0.01, 0.07, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_selection_is_the_published_loop(share, seed):
    generator = torch.Generator().manual_seed(seed)
    mi = torch.rand(400, generator=generator, dtype=torch.float64) ** 4
    expectation = torch.randn(400, generator=generator, dtype=torch.float64)
    expectation[torch.rand(400, generator=generator) < 0.6] = 0
    found = selected(mi.tolist(), expectation.tolist(), share=share)
    assert found == authors_loop(mi.tolist(), expectation.tolist(), share)


def statistics(seed=2, dtype=torch.float32, f=F):
    """(mi, mean_context, mean_memory), means about as large as activations are."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(f, generator=generator).to(dtype) for _ in range(3)]


def by_equations(h, z, sae, spare, toward, alpha, form):
    """h' of h [N, D] with activations z [N, F]: equations 2 to 4, or the authors' program."""
    away = "memory" if toward == "context" else "context"
    (known,) = spare.statistics.values()
    mean = {"context": known.mean_context.to(h.dtype), "memory": known.mean_memory.to(h.dtype)}
    minus, plus = torch.zeros_like(z), torch.zeros_like(z)
    inside = alpha if form == "code" else 1.0
    for i in spare.features(away):
        minus[:, i] = torch.minimum(z[:, i], inside * mean[away][i])
    for i in spare.features(toward):
        plus[:, i] = torch.clamp(inside * mean[toward][i] - z[:, i], min=0)
    decoder = sae.W_dec.to(h.dtype)
    if form == "code":
        return h - (minus @ decoder + sae.b_dec) + (plus @ decoder + sae.b_dec)
    return h + alpha * (-(minus @ decoder) + plus @ decoder)


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("toward", ["context", "memory"])
@pytest.mark.parametrize("alpha", [0.7, 2])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk", "gated"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_the_edit_is_the_equations(kind, alpha, toward, form, dtype, tolerance):
    sae, exact = (make_sae(every_activation()[kind], dtype=each) for each in (dtype, torch.float64))
    if dtype == torch.float32:
        exact = ss.SAE(
            W_enc=sae.W_enc.double(), W_dec=sae.W_dec.double(), b_enc=sae.b_enc.double(), b_dec=sae.b_dec.double(),
            activation=sae.activation,
        )  # fmt: skip
    spare = ss.SPARE.from_statistics(sae, *statistics(dtype=dtype), k=30)
    assert spare.features("context") and spare.features("memory")
    h, plan = hidden(7, dtype), spare.plan(toward, alpha, form)
    assert not plan.needs_sae
    x = h.double()
    z = torch.relu((x - exact.b_dec) @ exact.W_enc + exact.b_enc) if kind == "topk" else exact.encode(x)  # no mask
    want = by_equations(x, z, exact, spare, toward, alpha, form) - x
    found = ss.ops.steer(h, plan).double() - x
    assert want.norm() > 0.1
    assert (found - want).norm() <= tolerance * want.norm()


def test_alpha_of_0_does_nothing():
    spare = ss.SPARE.from_statistics(make_sae(), *statistics(), k=30)
    for form in ("code", "paper"):
        assert torch.equal(ss.ops.steer(hidden(), spare.plan(alpha=0.0, form=form)), hidden())


def test_forms_differ():
    spare = ss.SPARE.from_statistics(make_sae(ss.ReLU()), *statistics(), k=30)
    code, paper = (ss.ops.steer(hidden(), spare.plan(form=form)) for form in ("code", "paper"))
    assert (code - paper).norm() > 0.1
    assert torch.allclose(*(ss.ops.steer(hidden(), spare.plan("memory", 1.0, form)) for form in ("code", "paper")))


def test_sides_are_told_by_the_difference_that_is_given():
    mi, context, memory = statistics()
    sae = make_sae()
    spare = ss.SPARE.from_statistics(sae, mi, context, memory, memory - context, k=20)
    other = ss.SPARE.from_statistics(sae, mi, context, memory, k=20)
    assert spare.features("context") == other.features("memory")
    assert set(spare.features("context")) == {c.feature for c in spare.edit("context").changes if c.c0 > 0}


def test_rows_of_a_batch_follow_plans_in_both_directions():
    spare = ss.SPARE.from_statistics(make_sae(ss.TopK(7)), *statistics(), k=30)
    plans = spare.plan("memory"), spare.plan("context", 1.3, "paper")
    bank = ss.Bank(plans[0], capacity=120, slots=4)
    slots = [bank.add(plan) for plan in plans]
    h = hidden(6)
    slot = torch.tensor([slots[0], -1, slots[1], slots[1], slots[0], -1], dtype=torch.int32)
    found = ss.ops.steer_slots(h, bank, slot)
    for i in range(6):
        want = h[i] if i in (1, 5) else ss.ops.steer(h[i], plans[slots.index(int(slot[i]))])
        torch.testing.assert_close(found[i], want)


def layered(k=10):
    """(a tiny model, SPARE of its blocks 0 and 2)."""
    saes = {}
    for layer in (0, N_LAYERS - 1):
        generator = torch.Generator().manual_seed(layer)
        W_enc, W_dec = torch.randn(WIDTH, 64, generator=generator), torch.randn(64, WIDTH, generator=generator)
        saes[layer] = ss.SAE(W_enc=W_enc, W_dec=W_dec, activation=ss.TopK(5))
    given = zip(*(statistics(layer, f=64) for layer in saes), strict=True)
    return llama(), ss.SPARE.from_statistics(saes, *(dict(zip(saes, each, strict=True)) for each in given), k=k)


def test_several_layers_are_edited_one_after_the_other_at_the_last_prompt_token():
    model, spare = layered()
    plans = spare.plan("memory", 1.5)
    assert list(plans) == list(spare.features("context")) == list(spare.edit()) == [0, N_LAYERS - 1]
    ids = prompts()

    def by_hand(plan):
        def change(h):
            return torch.cat([h[:, :-1], ss.ops.steer(h[:, -1:], plan)], 1)

        return change

    blocks = model.model.layers
    with torch.no_grad():
        with steered_by_hand(blocks[0], by_hand(plans[0])), steered_by_hand(blocks[2], by_hand(plans[2])):
            want = model(ids).logits
        with ss.steer(model, plans, positions="last_prompt"):
            found = model(ids).logits
        torch.testing.assert_close(found, want)
        assert (found[:, -1] - model(ids).logits[:, -1]).norm() > 0.1


def test_another_selection_shares_the_statistics():
    spare = ss.SPARE.from_statistics(make_sae(), *statistics(), k=30)
    fewer = spare.with_selection(share=0.02)
    assert fewer.statistics[None] is spare.statistics[None]
    assert fewer.features("memory") == spare.features("memory")[: len(fewer.features("memory"))]
    assert repr(spare).startswith("SPARE(") and f"{len(spare.features('memory'))} of memory" in repr(spare)


def test_file_gives_everything_back(tmp_path):
    sae = make_sae(ss.TopK(7))
    spare = ss.SPARE.from_statistics(sae, *statistics(), k=30)
    path = spare.save(tmp_path / "new" / "spare.safetensors")
    again = ss.SPARE.load(path, make_sae(ss.TopK(7)))
    assert again.features("context") == spare.features("context") and again.selection == spare.selection
    assert torch.equal(ss.ops.steer(hidden(), again.plan()), ss.ops.steer(hidden(), spare.plan()))
    with pytest.raises(ValueError, match="another SAE than the one given"):
        ss.SPARE.load(path, make_sae(ss.TopK(8)))
    with pytest.raises(ValueError, match="is of the sites null, the SAEs given are for 3"):
        ss.SPARE.load(path, {3: sae})


def test_file_of_several_sites(tmp_path):
    _, spare = layered()
    saes = {ss.Site(hook_name="model.layers.0"): spare.saes[0], "model.layers.2": spare.saes[2]}
    given = ss.SPARE(saes, dict(zip(saes, spare.statistics.values(), strict=True)), spare.selection, {"why": "a test"})
    again = ss.SPARE.load(given.save(tmp_path / "spare.safetensors"), saes)
    assert again.features("memory") == given.features("memory") and again.about == {"why": "a test"}


def test_damaged_files_are_told(tmp_path):
    path = ss.SPARE.from_statistics(make_sae(), *statistics(), k=30).save(tmp_path / "spare.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        ss.SPARE.load(path, make_sae())
    path.write_bytes(data.replace(b"0.mean_memory", b"0.mean_nemory"))
    with pytest.raises(ValueError, match="not a complete fitted SPARE.*mean_memory"):
        ss.SPARE.load(path, make_sae())
    with pytest.raises(ValueError, match="not a fitted SPARE"):
        ss.SPARE.load(make_sae().plan(ss.Edit.ablate([1])).save(tmp_path / "plan.safetensors"), make_sae())


def given(**changes):
    mi, context, memory = statistics()
    sae = changes.pop("sae", None) or make_sae()
    parts = {"mi": mi, "mean_context": context, "mean_memory": memory, "k": 5} | changes
    return ss.SPARE.from_statistics(sae, **parts)


WRONG = {
    "no k": (lambda: given(k=None), ValueError, "give k.*or share"),
    "both": (lambda: given(share=0.1), ValueError, "got k=5 and share=0.1"),
    "k of 0": (lambda: given(k=0), ValueError, "k should be a positive whole number, got 0"),
    "share of 0": (lambda: given(k=None, share=0), ValueError, "share should be above 0 and at most 1, got 0"),
    "share in percent": (lambda: given(k=None, share=7), ValueError, "at most 1, got 7"),
    "no SAE": (lambda: given(sae="layer 3"), TypeError, "should be an SAE, got str"),
    "mi too short": (lambda: given(mi=torch.ones(3)), ValueError, rf"mi should have shape \[{F}\].*got \[3\]"),
    "mi of NaN": (lambda: given(mi=torch.full((F,), NAN)), ValueError, "mi has NaN or infinite values.*feature 0"),
    "mi below 0": (lambda: given(mi=-torch.ones(F)), ValueError, "is not negative"),
    "means of integers": (lambda: given(mean_memory=torch.ones(F).int()), TypeError, "floating point, got torch.int32"),
    "several and one": (lambda: given(sae={3: make_sae()}), ValueError, r"mi should be given for the sites.*\[3\]"),
    "no site": (lambda: ss.SPARE.from_statistics({}, {}, {}, {}, k=1), ValueError, "no site was given"),
    "toward": (lambda: given().plan("parameters"), ValueError, "toward should be one of context, memory"),
    "side": (lambda: given().features("both"), ValueError, "side should be one of context, memory"),
    "form": (lambda: given().plan(form="text"), ValueError, "form should be one of code, paper, got 'text'"),
    "alpha below 0": (lambda: given().plan(alpha=-1.0), ValueError, "alpha should be a number from 0 on, got -1.0"),
    "alpha infinite": (lambda: given().plan(alpha=float("inf")), ValueError, "alpha should be a number"),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()
