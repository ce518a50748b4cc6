"""Every format against the library that owns it: encode of 512 inputs, decode, steering, the site."""

import cases_lens
import cases_owners
import pytest
import torch
from format_case import F, inputs, weights
from lens import acts_edit
from lens_offline import lens_loaded

import sparsesteer as ss
from sparsesteer import SAE

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = cases_lens.CASES | cases_owners.CASES


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("case"))


def busy(f, n=18):
    """The features that fire most, and those that fire least, [n]."""
    order = (f > 0).sum(0).argsort(descending=True, stable=True).tolist()
    return order[: n // 2] + order[-(n - n // 2) :]


def close(got, want):
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_encodes_and_decodes_as_its_owner(case):
    sae, h = SAE.load_from_disk(case.path, **case.given), inputs()
    f, sure = case.encode(h), case.sure(h)
    assert 0.01 < (f > 0).double().mean() < 0.6 and sure.double().mean() > 0.99
    close(sae.encode(h.float())[sure], f[sure])
    close(sae.encode(h)[sure], f[sure])
    skip = 0 if case.skip is None else case.skip(h)
    close(sae.decode(f, like=h), case.decode(f) + skip)


@torch.no_grad()
def test_sparse_codes_are_the_owners(case):
    sae, h = SAE.load_from_disk(case.path, **case.given), inputs(64)
    f, sure = case.encode(h), case.sure(h).all(-1)
    codes = sae.encode_sparse(h)
    close(codes.to_dense(sae.d_sae)[sure], f[sure])
    skip = 0 if case.skip is None else case.skip(h)
    close(sae.decode(codes, like=h)[sure], (case.decode(f) + skip)[sure])
    assert sure.double().mean() > 0.8


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_steers_as_its_owner_would(case, dtype):
    """The owner's way: encode, edit the activations, decode, add back the error of the unedited ones."""
    sae, h = SAE.load_from_disk(case.path, **case.given), inputs()
    w = h if case.d_out == h.shape[1] else inputs(d=case.d_out, seed=8)
    f = case.encode(h)
    features = busy(f)
    edit, theirs = acts_edit({feature: 0.25 * (i + 1) for i, feature in enumerate(features)})
    want = case.decode(theirs(f)) + (w - case.decode(f))
    sure = case.sure(h)[:, features].all(-1)
    got = ss.ops.steer(h.to(dtype), sae.plan(edit), into=w.to(dtype)).double()
    error = ((got - want)[sure].norm() / (want - w)[sure].norm()).item()
    assert error < 1e-5 and sure.double().mean() > 0.9


@torch.no_grad()
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_reconstructs_as_its_owner_would(case, strength):
    sae, h = SAE.load_from_disk(case.path, **case.given), inputs(64)
    w = inputs(64, case.d_out, seed=8)
    f, sure = case.encode(h), case.sure(h).all(-1)
    edit, theirs = acts_edit({feature: 0.25 * (i + 1) for i, feature in enumerate(busy(f))})
    skip = 0 if case.skip is None else case.skip(h)
    want = w + strength * (case.decode(theirs(f)) + skip - w)
    got = ss.ops.steer(h, sae.plan(edit, reconstruct=True), strength, into=w)
    close(got[sure], want[sure])
    assert sure.double().mean() > 0.8


def test_the_site_is_told_by_files_and_path(case):
    sae = SAE.load_from_disk(case.path, **case.given)
    assert sae.site == case.site
    assert sae.transcoder == (case.site.hook_name_out is not None)
    assert sae.d_out == case.d_out and (sae.W_skip is None) == (case.skip is None)


def test_matrices_stay_on_disk(case, request):
    sae = SAE.load_from_disk(case.path, **case.given)
    in_memory = isinstance(sae.W_enc, torch.Tensor)
    assert in_memory == ("packed" in request.node.callspec.id)
    assert isinstance(sae.W_dec, torch.Tensor) == in_memory
    assert sae.d_sae in (F, 88) and sae.to("meta").d_sae == sae.d_sae


@pytest.mark.parametrize(
    "name",
    ["AutoEncoder", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
     "MatryoshkaBatchTopKSAE"],
)  # fmt: skip
@torch.no_grad()
def test_dictionary_learning_as_saelens_reads_it(name, tmp_path):
    """With decoder rows of norm 1; SAELens leaves the others of ``AutoEncoder`` as they are, its owner does not."""
    case = CASES[name](tmp_path)
    folder = case.path.relative_to(tmp_path / "canrager/lm_sae")
    lens = lens_loaded("dictionary_learning_1", tmp_path, "canrager/lm_sae", str(folder))
    sae, h = SAE.load_from_disk(case.path), inputs()
    f, sure = lens.encode(h), case.sure(h)
    close(sae.encode(h)[sure], f[sure])
    close(sae.decode(f), lens.decode(f))


def test_sparsify_is_followed_where_saelens_is_not(tmp_path):
    """SAELens's loader of sparsify transposes W_dec, which is [F, D] already, and takes normalize_decoder for a rule
    about b_dec; sparsify uses it in training alone and always subtracts b_dec."""
    from sae_lens.loading.pretrained_sae_loaders import sparsify_disk_loader

    case = cases_owners.sparsify("layers.10", (None,), num_latents=F)(tmp_path)
    config, state = sparsify_disk_loader(case.path, cfg_overrides={"dtype": "float32"})
    ours = SAE.load_from_disk(case.path)
    assert tuple(state["W_dec"].shape) == tuple(ours.W_dec.shape)[::-1]
    assert config["apply_b_dec_to_input"] is False and ours.apply_b_dec_to_input is True
    assert torch.equal(ours.W_dec.load(), weights(f=F)["W_dec"])
