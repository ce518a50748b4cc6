"""The reference against sae_lens's own classes, edited at their post-activation hook, in fp64."""

import pytest
import torch
from lens import ARCHITECTURES, NORMS, acts_edit, busy_and_quiet, lens_sae, steered

import sparsesteer as ss
from sparsesteer import SAE, Edit

SHAPES = [(13, 37, 6), (31, 101, 5)]


def relative_error_of_edit(got, want, h):
    return ((got - want).norm() / (want - h).norm()).item()


@pytest.mark.parametrize("d, f, n", SHAPES)
@pytest.mark.parametrize("b_dec", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "topk rescaled"])
def test_equals_sae_lens_with_error_term(architecture, norm, b_dec, d, f, n):
    extra = {"rescale_acts_by_decoder_norm": True} if architecture == "topk rescaled" else {}
    config = dict(normalize_activations=norm, apply_b_dec_to_input=b_dec, **extra)
    lens = lens_sae(architecture.split()[0], d, f, seed=d, **config)
    h = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(f)) * 3 + 0.5
    features = busy_and_quiet(lens, h, 9)
    edit, hook = acts_edit({feature: 0.25 * (i + 1) for i, feature in enumerate(features)})
    want = steered(lens, h, hook)
    got = ss.ops.steer(h, SAE.from_saelens(lens).plan(edit), backend="reference")
    assert torch.isfinite(got).all()
    assert relative_error_of_edit(got, want, h) < 1e-12


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reconstruction_equals_sae_lens_without_error_term(architecture, norm):
    lens = lens_sae(architecture, 13, 37, normalize_activations=norm)
    h = torch.randn(6, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 0.5
    edit, hook = acts_edit({feature: 1.5 for feature in busy_and_quiet(lens, h, 6)})
    want = steered(lens, h, hook, error_term=False)
    got = ss.ops.steer(h, SAE.from_saelens(lens).plan(edit, reconstruct=True))
    assert relative_error_of_edit(got, want, h) < 1e-12


@pytest.mark.parametrize("rank", [-2, -1, 0, 1])
@pytest.mark.parametrize("rule", ["set", "scale", "add", "cap", "floor"])
def test_topk_at_the_edge(rule, rank):
    """The edited feature is the (k + rank + 1)-th largest: in for rank < 0, out from rank 0 on."""
    lens = lens_sae("topk", 13, 37, k=6)
    h = torch.randn(8, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 1
    sae = SAE.from_saelens(lens)
    encoder, table = sae.whole_encoder(torch.float64)
    z = h @ encoder.T + table[:, 0]
    for i in range(len(h)):
        feature = int(z[i].argsort(descending=True)[6 + rank])
        value = float(z[i, feature]) / 2 + 1
        f = float(z[i, feature]) if rank < 0 else 0.0
        new = {"set": value, "scale": f * value, "add": f + value, "cap": min(f, value), "floor": max(f, value)}[rule]
        plan = sae.plan(getattr(Edit, rule)({feature: value}))
        got = ss.ops.steer(h[i : i + 1], plan)
        torch.testing.assert_close(got[0], h[i] + (new - f) * lens.W_dec[feature].detach(), rtol=1e-12, atol=1e-12)
