"""Losses of AlignSAE against the released program's lines, written out; value heads and the start of training."""

import pytest
import torch
from torch.nn import functional

import sparsesteer as ss
from sparsesteer.methods.alignsae import LossWeights, Recipe, losses
from sparsesteer.methods.alignsae.network import Network, ValueHeads

pytestmark = pytest.mark.usefixtures("one_thread")
B, D, R, F = 13, 6, 4, 11


@pytest.fixture
def batch():
    """(h, slots, free, labels)."""
    generator = torch.Generator().manual_seed(0)
    h, slots, free = (torch.randn(B, n, generator=generator) for n in (D, R, F))
    return h, slots, free, torch.randint(R, (B,), generator=generator)


def covariance(a, b):
    """The released program's: centred, divided by the batch."""
    return (a - a.mean(dim=0, keepdim=True)).T @ (b - b.mean(dim=0, keepdim=True)) / len(a)


def test_reconstruction_sparsity_and_binding(batch):
    h, slots, free, labels = batch
    torch.testing.assert_close(losses.reconstruction(h * 2, h), ((h * 2 - h) ** 2).mean())
    torch.testing.assert_close(losses.sparsity(free), sum(abs(v) for v in free.flatten()) / free.numel())
    target = torch.zeros(B, R)
    target[torch.arange(B), labels] = 1.0
    torch.testing.assert_close(losses.binding(slots, labels), functional.mse_loss(slots, target))
    by_hand = -sum(slots[i].softmax(-1)[labels[i]].log() for i in range(B)) / B
    torch.testing.assert_close(losses.binding(slots, labels, "ce"), by_hand)


def test_orthogonality(batch):
    _, slots, free, _ = batch
    torch.testing.assert_close(losses.orthogonality(slots, free), (covariance(slots, free) ** 2).sum())
    correlation = torch.corrcoef(torch.cat([slots, free], 1).T)[:R, R:]
    torch.testing.assert_close(losses.orthogonality(slots, free, "correlation"), (correlation**2).sum())


def test_a_feature_that_never_changes_has_no_correlation(batch):
    _, slots, free, _ = batch
    free = free.clone()
    free[:, 3] = 2.5
    found = losses.orthogonality(slots, free, "correlation")
    others = losses.orthogonality(slots, free[:, [i for i in range(F) if i != 3]], "correlation")
    torch.testing.assert_close(found, others)


def test_independence_equals_the_released_form(batch):
    free = batch[2]
    cov = covariance(free, free)
    off_diag = cov - torch.eye(F) * cov
    torch.testing.assert_close(losses.independence(free), (off_diag**2).sum())


def test_independence_and_orthogonality_have_the_same_gradients(batch):
    _, slots, free, _ = batch
    given = free.clone().requires_grad_()
    cov = covariance(given, given)
    released = ((cov - torch.eye(F) * cov) ** 2).sum() + (covariance(slots, given) ** 2).sum()
    (wanted,) = torch.autograd.grad(released, given)
    (found,) = torch.autograd.grad(losses.independence(given) + losses.orthogonality(slots, given), given)
    torch.testing.assert_close(found, wanted)


def test_nothing_of_the_size_of_features_squared_is_made():
    """100,000 features: their covariances would take 40 GB."""
    free = torch.randn(3, 100_000, requires_grad=True)
    losses.independence(free).backward()
    losses.orthogonality(torch.randn(3, R), free).backward()
    assert free.grad.shape == free.shape


def test_invariance_is_the_spread_within_a_concept(batch):
    _, slots, _, labels = batch
    by_hand = sum(((slots[labels == c] - slots[labels == c].mean(0)) ** 2).sum() for c in labels.unique()) / (B * R)
    torch.testing.assert_close(losses.invariance(slots, labels), by_hand)
    assert losses.invariance(functional.one_hot(labels, R).float(), labels) == 0


def test_value_heads(batch):
    _, slots, _, labels = batch
    tokens = torch.tensor([3, 8, 20])
    heads = ValueHeads(R, tokens, 5, torch.Generator().manual_seed(1))
    answers = torch.arange(B) % 3
    released = []
    for i in range(B):  # one MLP a relation, 1 -> hidden -> ReLU -> vocabulary
        rule = int(labels[i])
        hidden = torch.relu(slots[i, rule] * heads.inner[rule] + heads.inner_bias[rule])
        released.append(hidden @ heads.outer[rule] + heads.outer_bias[rule])
    wanted = functional.cross_entropy(torch.stack(released), answers)
    torch.testing.assert_close(heads.loss(slots, labels, answers), wanted)


@pytest.mark.parametrize("n_free", [3, 40])
def test_training_begins_with_a_decoder_that_inverts_the_encoder(n_free):
    network = Network.begun(D, R, 1.0, None, None, Recipe(n_free=n_free))
    h = torch.randn(5, D)
    torch.testing.assert_close(network(h).rebuilt, h, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "activation", [ss.ReLU(), ss.JumpReLU(0.3), ss.Identity(), ss.TopK(F)], ids=lambda a: type(a).__name__
)
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_training_begins_with_the_sae_that_is_given(activation, apply_b_dec):
    generator = torch.Generator().manual_seed(3)
    base = ss.SAE(
        W_enc=torch.randn(D, F, generator=generator),
        W_dec=torch.randn(F, D, generator=generator),
        b_enc=torch.randn(F, generator=generator),
        b_dec=torch.randn(D, generator=generator),
        activation=activation,
        apply_b_dec_to_input=apply_b_dec,
    )
    h = torch.randn(7, D, generator=generator)
    network = Network.begun(D, R, 2.5, None, base, Recipe()).eval()
    codes = network(h / 2.5)
    torch.testing.assert_close(codes.free, base.encode(h), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(codes.rebuilt * 2.5, base.decode(base.encode(h)), atol=1e-4, rtol=1e-4)
    sae = network.sae(ss.Site())
    assert sae.activation.n == R and sae.d_sae == F + R
    torch.testing.assert_close(sae.encode(h)[:, :F], base.encode(h), atol=1e-4, rtol=1e-4)


def test_saes_that_slots_cannot_be_added_to():
    weights = {"W_enc": torch.ones(D, F), "W_dec": torch.ones(F, D)}
    for base, message in (
        (ss.SAE(**weights, activation=ss.ReLU(), normalize="layer_norm"), "no normalisation"),
        (ss.SAE(**weights, activation=ss.ReLU(), rescale_acts_by_decoder_norm=True), "fold the decoder norms"),
        (ss.SAE(**weights, activation=ss.Slots(2, ss.ReLU())), "not Slots"),
        (ss.SAE(W_enc=torch.ones(3, F), W_dec=torch.ones(F, 3), activation=ss.ReLU()), "have width 6"),
    ):
        with pytest.raises(ValueError, match=message):
            Network.begun(D, R, 1.0, None, base, Recipe())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(free="gelu"), "free should be one of"),
        (lambda: Recipe(bind="hinge"), "bind should be one of"),
        (lambda: Recipe(orthogonality="none"), "orthogonality should be one of"),
        (lambda: Recipe(n_free=0), "n_free should be a whole number from 1 on"),
        (lambda: Recipe(batch_size=1), "batch_size should be a whole number from 2 on"),
        (lambda: Recipe(patience=0), "patience should be a whole number from 1 on"),
        (lambda: Recipe(clip=0.0), "clip should be positive"),
        (lambda: Recipe(learning_rate=0.0), "learning_rate should be positive"),
        (lambda: LossWeights(value=-1.0), "the weight of value should be"),
        (lambda: LossWeights(binding=float("nan")), "the weight of binding should be"),
    ],
)
def test_recipes_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_published_weights():
    weights = LossWeights()
    published = (1.0, 1e-3, 1.0, 1e-2, 1e-2, 0.5)
    names = ("reconstruction", "sparsity", "binding", "independence", "orthogonality", "value")
    assert tuple(getattr(weights, name) for name in names) == published
