"""Training of AlignSAE: two stages, exact resuming, streamed states, and what is said when something is wrong."""

from dataclasses import replace

import pytest
import torch
from alignsae_cases import CONCEPTS, SMALL, WIDTH, in_parts, states

import sparsesteer as ss
from sparsesteer.methods.alignsae import LossWeights
from sparsesteer.methods.alignsae.checkpoints import CHECKPOINT
from sparsesteer.methods.alignsae.measures import binding_of, unexplained
from sparsesteer.methods.alignsae.states import States
from sparsesteer.methods.alignsae.training import Trainer

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def trained(recipe=SMALL, some=None, folder=None, **options):
    trainer = Trainer(states() if some is None else some, 3, recipe, names=CONCEPTS, folder=folder, **options)
    return trainer, trainer.run()


def same(network, other):
    mine, theirs = network.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_slots_are_bound_in_stage_two_alone():
    trainer, network = trained()
    history = trainer.progress.history
    assert [set(row) for row in history[:2]] == [{"epoch", "reconstruction", "sparsity", "loss"}] * 2
    assert {"binding", "independence", "orthogonality", "value", "slots"} <= set(history[2])
    assert history[-1]["binding"] < history[2]["binding"]
    held_out = states(seed=1)
    sae = network.sae(ss.Site())
    assert binding_of(sae, held_out, 3).accuracy > 0.95
    values = sae.encode(next(held_out.in_order()).h)[:, -3:]
    assert values.gather(1, held_out.labels[:, None]).mean() > 0.7
    assert unexplained(sae, held_out) < 0.2


@pytest.mark.parametrize(("free", "bind"), [("identity", "ce"), ("relu", "mse"), ("topk", "ce")])
def test_every_bank_and_binding_learns(free, bind):
    trainer, network = trained(replace(SMALL, free=free, bind=bind, k=5))
    assert trainer.progress.history[-1]["slots"] > 0.9
    sae = network.sae(ss.Site())
    h = next(states(seed=1).in_order()).h
    codes = network.eval()(h / network.scale)
    assert type(sae.activation.rest) is {"identity": ss.Identity, "relu": ss.ReLU, "topk": ss.JumpReLU}[free]
    torch.testing.assert_close(sae.encode(h)[:, -3:], codes.slots, atol=1e-4, rtol=1e-4)
    if free != "topk":  # whose rank condition becomes a threshold
        torch.testing.assert_close(sae.encode(h)[:, :-3], codes.free, atol=1e-4, rtol=1e-4)


def test_every_loss_takes_part_where_its_weight_is_not_zero():
    weights = LossWeights(independence=0.0, orthogonality=0.0, value=0.0, invariance=1.0)
    trainer, network = trained(replace(SMALL, weights=weights))
    found = set(trainer.progress.history[-1])
    assert "invariance" in found and not {"independence", "orthogonality", "value"} & found and network.heads is None


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(("epoch", "free"), [(1, "identity"), (4, "topk")], ids=["stage one", "stage two"])
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(epoch, free, tmp_path):
    recipe = replace(SMALL, free=free, stage_two=4)
    whole, network = trained(recipe)

    def interrupt(_, numbers):
        if trainer.progress.epoch == epoch:
            raise Interrupted

    trainer = Trainer(states(), 3, recipe, folder=tmp_path)
    with pytest.raises(Interrupted):
        trainer.run(interrupt)
    again, resumed = trained(recipe, folder=tmp_path)
    assert again.progress.history == whole.progress.history and same(network, resumed)
    assert trained(recipe, folder=tmp_path)[0].progress.history == whole.progress.history  # nothing is done twice


def test_training_can_go_on_longer_than_was_first_said(tmp_path):
    trained(replace(SMALL, stage_two=3), folder=tmp_path)
    longer, network = trained(replace(SMALL, stage_two=6), folder=tmp_path)
    assert same(network, trained(replace(SMALL, stage_two=6))[1]) and longer.progress.epoch == 8


def test_checkpoints_of_another_training_are_refused(tmp_path):
    trained(replace(SMALL, stage_two=1), folder=tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    for recipe, some, message in (
        (replace(SMALL, n_free=21), None, "differs in n_free"),
        (replace(SMALL, seed=1), None, "differs in seed"),
        (SMALL, states(seed=5), "differs in the states"),
    ):
        with pytest.raises(ValueError, match=message):
            trained(recipe, some, tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(before[:200])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        trained(folder=tmp_path)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path, monkeypatch):
    from sparsesteer.methods.alignsae import checkpoints

    trained(replace(SMALL, stage_two=1), folder=tmp_path)
    monkeypatch.setattr(checkpoints, "_check_same", lambda *given: None)
    with pytest.raises(ValueError, match=r"has W_dec of shape \[23, 8\], this training needs \[33, 8\]"):
        trained(replace(SMALL, n_free=30), folder=tmp_path)


def test_a_loss_that_is_not_finite_ends_training_and_loses_nothing(tmp_path):
    trained(replace(SMALL, stage_two=2), folder=tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    trainer = Trainer(states(), 3, SMALL, folder=tmp_path)
    trainer.network.W_dec.data[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="reconstruction is not finite in epoch 5; the last checkpoint is in"):
        trainer.run()
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    with pytest.raises(RuntimeError, match="smaller learning_rate"):
        trained(replace(SMALL, learning_rate=1e30, clip=None))


def test_training_stops_where_nothing_gets_better(tmp_path):
    recipe = replace(SMALL, stage_two=60, patience=3, learning_rate=1e-9)
    trainer, network = trained(recipe, folder=tmp_path)
    assert trainer.progress.epoch < 60 and trainer.progress.epoch - 1 - trainer.progress.best_epoch == 3
    assert trained(recipe, folder=tmp_path)[0].progress.epoch == trainer.progress.epoch


def test_the_best_epoch_is_kept_by_validation():
    trainer, network = trained(validation=states(seed=2))
    scores = [row.get("validation_slots", -1.0) for row in trainer.progress.history]
    assert scores[trainer.progress.best_epoch] == max(scores)


def test_training_starts_from_an_sae():
    generator = torch.Generator().manual_seed(3)
    base = ss.SAE(
        W_enc=torch.randn(WIDTH, 20, generator=generator),
        W_dec=torch.randn(20, WIDTH, generator=generator) / 20,
        activation=ss.ReLU(),
    )
    _, network = trained(base=base)
    assert network.sae(ss.Site()).d_sae == 23 and isinstance(network.sae(ss.Site()).activation.rest, ss.ReLU)


def test_an_ordinary_sae_has_stage_one_alone():
    trainer = Trainer(states(), 0, replace(SMALL, free="relu", stage_one=3))
    sae = trainer.run().sae(ss.Site())
    assert len(trainer.progress.history) == 3 and isinstance(sae.activation, ss.ReLU) and sae.d_sae == 20


def test_mixed_precision_trains():
    trainer, network = trained(replace(SMALL, bf16=True))
    assert trainer.progress.history[-1]["slots"] > 0.9 and network.W_enc.dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 3, 0, 1, 2], "labels should be from 0 to 2"),
        ([0, 1, -1, 0, 1], "labels should be from 0 to 2"),
        ([0, 0, 1, 1], r"concept 2 \(school\) has no example"),
        ([0, 0, 1, 1, 2], r"concept 2 \(school\) has one example"),
        ([], "no states to train on"),
    ],
)
def test_labels_that_are_refused(labels, message):
    some = States.of(torch.randn(len(labels), WIDTH), torch.tensor(labels, dtype=torch.int64))
    with pytest.raises(ValueError, match=message):
        trained(some=some)


def test_states_that_are_refused():
    with pytest.raises(ValueError, match=r"states \[n, D\] have labels"):
        States.of(torch.randn(4, WIDTH), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="are they all 0, or NaN"):
        trained(some=States.of(torch.zeros(6, WIDTH), torch.arange(6) % 3))


def test_streamed_states_are_all_seen_once_an_epoch():
    whole = states(per_concept=211)
    parts = in_parts(whole, 29)
    assert len(parts.parts) > 16  # more than are mixed at a time
    seen = list(parts.shuffled(16, seed=3))
    rows = torch.cat([batch.h for batch in seen])
    (everything,) = whole.in_order()
    assert len(rows) == len(whole) and {len(batch) for batch in seen[:-1]} == {16}
    assert torch.equal(rows.sort(0).values, everything.h.sort(0).values)
    assert not torch.equal(rows, everything.h)
    other = torch.cat([batch.h for batch in parts.shuffled(16, seed=4)])
    assert not torch.equal(rows, other) and torch.equal(rows, torch.cat([b.h for b in parts.shuffled(16, seed=3)]))


def test_a_last_batch_of_one_is_left_out():
    assert [len(batch) for batch in states(per_concept=11).shuffled(16, 0)] == [16, 16]
