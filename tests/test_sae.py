"""The SAE itself: what it refuses, what it computes, what stays shared, what tells two of them apart."""

import pytest
import torch
from lens import ARCHITECTURES, NORMS, lens_sae
from safetensors.torch import save_file

import sparsesteer as ss
from sparsesteer import SAE, Edit, Site
from sparsesteer.storage import open_safetensors

D, F = 6, 20


def parts(seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return {
        "W_enc": torch.randn(D, F, generator=g).to(dtype),
        "W_dec": torch.randn(F, D, generator=g).to(dtype),
        "b_enc": torch.randn(F, generator=g).to(dtype),
        "b_dec": torch.randn(D, generator=g).to(dtype),
    }


def with_nan(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[7 % tensor.numel()] = float("nan")
    return tensor


def with_infinities(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[:2] = torch.tensor([float("inf"), -float("inf")])
    return tensor


WRONG = {
    "W_dec transposed": (lambda p: p.update(W_dec=p["W_dec"].T), ValueError, "transposed"),
    "W_dec too short": (lambda p: p.update(W_dec=p["W_dec"][:-1]), ValueError, r"\[6, 20\] and \[19, 6\]"),
    "W_enc a vector": (lambda p: p.update(W_enc=p["W_enc"][0]), ValueError, r"W_enc should be a matrix.*\[20\]"),
    "W_enc empty": (lambda p: p.update(W_enc=torch.zeros(D, 0)), ValueError, "W_enc should be a matrix"),
    "W_enc a list": (lambda p: p.update(W_enc=[[1.0]]), TypeError, "W_enc should be a tensor, got list"),
    "W_enc of integers": (lambda p: p.update(W_enc=p["W_enc"].int()), TypeError, "W_enc.*floating.*int32"),
    "b_enc of integers": (lambda p: p.update(b_enc=p["b_enc"].int()), TypeError, "b_enc.*floating.*int32"),
    "b_enc too long": (lambda p: p.update(b_enc=torch.zeros(F + 1)), ValueError, r"b_enc.*\[20\], got \[21\]"),
    "b_dec of length F": (lambda p: p.update(b_dec=torch.zeros(F)), ValueError, r"b_dec.*\[6\], got \[20\]"),
    "NaN in W_enc": (lambda p: p.update(W_enc=with_nan(p["W_enc"])), ValueError, r"W_enc has NaN.*\[0, 7\]"),
    "inf in W_dec": (lambda p: p.update(W_dec=with_infinities(p["W_dec"])), ValueError, "W_dec has NaN or inf"),
    "NaN in b_enc": (lambda p: p.update(b_enc=with_nan(p["b_enc"])), ValueError, "b_enc has NaN"),
    "inf in b_dec": (lambda p: p.update(b_dec=with_infinities(p["b_dec"])), ValueError, "b_dec has NaN or inf"),
    "unknown norm": (lambda p: p.update(normalize="rms"), ValueError, "none, layer_norm, constant_norm_rescale"),
    "activation as text": (lambda p: p.update(activation="relu"), TypeError, r"ss.ReLU\(\)"),
    "activation class": (lambda p: p.update(activation=ss.ReLU), TypeError, r"ss.ReLU\(\)"),
    "gated with b_enc": (
        lambda p: p.update(activation=ss.Gated(*torch.zeros(3, F))), ValueError, "in place of b_enc"),
    "maximum too short": (lambda p: p.update(feature_maximum=torch.ones(3)), ValueError, r"feature_maximum.*\[20\]"),
    "threshold too short": (
        lambda p: p.update(activation=ss.JumpReLU(torch.ones(F - 1))), ValueError, r"threshold.*\[20\].*\[19\]"),
    "threshold a matrix": (
        lambda p: p.update(activation=ss.JumpReLU(torch.ones(F, 1))), ValueError, r"threshold.*\[20, 1\]"),
    "threshold as text": (lambda p: p.update(activation=ss.JumpReLU("1")), TypeError, "threshold.*got str"),
    "NaN threshold": (
        lambda p: p.update(activation=ss.JumpReLU(with_nan(torch.ones(F)))), ValueError, "threshold has NaN"),
    "NaN 0-d threshold": (
        lambda p: p.update(activation=ss.JumpReLU(torch.tensor(float("nan")))), ValueError, "threshold has NaN"),
    "NaN number": (lambda p: p.update(activation=ss.JumpReLU(float("nan"))), ValueError, "threshold has NaN"),
    "infinite magnitude": (
        lambda p: p.update(activation=ss.Gated(torch.zeros(F), torch.zeros(F), torch.full((F,), 1e9)), b_enc=None),
        ValueError, "slope has NaN or infinite"),
    "NaN inside slots": (
        lambda p: p.update(activation=ss.Slots(3, ss.JumpReLU(float("nan")))), ValueError, "threshold has NaN"),
    "too many slots": (lambda p: p.update(activation=ss.Slots(F + 1, ss.ReLU())), ValueError, "at most.*20, got 21"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, error, message", WRONG.values(), ids=WRONG)
def test_what_is_refused(spoil, error, message):
    given = parts() | {"activation": ss.ReLU()}
    spoil(given)
    with pytest.raises(error, match=message):
        SAE(**given)


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "3"])
def test_k_is_a_positive_integer(k):
    with pytest.raises(ValueError, match="k should be a positive integer"):
        ss.TopK(k)


@pytest.mark.parametrize("n, rest", [(-1, ss.ReLU()), (1.0, ss.ReLU()), (1, ss.TopK(2)), (1, ss.Slots(1, ss.ReLU()))])
def test_slots_are_counted_beside_an_elementwise_activation(n, rest):
    with pytest.raises(ValueError, match="Slots: (n|rest) should be"):
        ss.Slots(n, rest)


def test_a_threshold_of_infinity_silences_a_feature():
    threshold = torch.zeros(F)
    threshold[3] = float("inf")
    sae = SAE(**parts(), activation=ss.JumpReLU(threshold))
    f = sae.encode(torch.randn(50, D) * 10)
    assert (f[:, 3] == 0).all() and (f[:, 4] > 0).any()


@pytest.mark.parametrize("threshold", [1e308, torch.tensor([1e308], dtype=torch.float64)[0], torch.full((F,), 1e30)])
def test_a_threshold_that_nothing_reaches(threshold, tmp_path):
    sae, h = SAE(**parts(), activation=ss.JumpReLU(threshold)), torch.randn(5, D) * 10
    assert (sae.encode(h) == 0).all() and torch.equal(ss.ops.steer(h, sae.plan(Edit.ablate([3]))), h)
    assert (SAE.load_from_disk(sae.save(tmp_path / "sae")).encode(h) == 0).all()


PLAN_ERRORS = [
    (lambda sae: sae.plan(Edit.set({F: 1})), ValueError, "feature 20 is out of range, this SAE has 0 to 19"),
    (lambda sae: sae.plan({3: 1}), TypeError, r"takes an Edit, got dict; write Edit.set\(\{feature: value\}\)"),
    (lambda sae: sae.plan(Edit.set({3: 1e39})), ValueError, "too large for torch.float32"),
    (lambda sae: sae.plan(Edit.add({3: 3e38, 4: 3e38})), ValueError, "too large for torch.float32"),
    (lambda sae: sae.plan(Edit.set({3: 1}), activation="relu"), TypeError, "activation should be"),
    (lambda sae: sae.plan(Edit.set({3: 1}), activation=ss.JumpReLU(torch.ones(3))), ValueError, "threshold"),
]


@pytest.mark.parametrize("call, error, message", PLAN_ERRORS)
def test_plans_that_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(SAE(**parts(), activation=ss.ReLU()))


def test_fp64_weights_keep_the_edit_in_fp64():
    plan = SAE(**parts(dtype=torch.float64), activation=ss.ReLU()).plan(Edit.set({3: 0.1}))
    assert plan.rows[0, 5].item() == 0.1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "topk rescaled"])
def test_encode_and_decode_equal_sae_lens(architecture, norm):
    extra = {"rescale_acts_by_decoder_norm": True} if architecture == "topk rescaled" else {}
    lens = lens_sae(architecture.split()[0], 13, 37, normalize_activations=norm, **extra)
    sae = SAE.from_saelens(lens)
    h = torch.randn(2, 7, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 0.3
    with torch.no_grad():
        f = lens.encode(h)
        torch.testing.assert_close(sae.encode(h), f, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sae.decode(f, like=h), lens.decode(f), rtol=1e-12, atol=1e-12)


def test_a_normalising_sae_needs_the_encoded_tensor_to_decode():
    sae = SAE(**parts(), activation=ss.ReLU(), normalize="layer_norm")
    with pytest.raises(ValueError, match=r"decode\(f, like=h\)"):
        sae.decode(torch.zeros(2, F))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_encode_and_decode_answer_in_the_dtype_they_are_asked_in(dtype):
    sae = SAE(**parts(), activation=ss.ReLU(), normalize="layer_norm")
    h = torch.randn(4, D, generator=torch.Generator().manual_seed(0)).to(dtype)
    f = sae.encode(h)
    assert f.dtype == dtype
    want = sae.encode(h.double())
    torch.testing.assert_close(f, want.to(dtype))
    out = sae.decode(f, like=h)
    assert out.dtype == dtype
    torch.testing.assert_close(out, sae.decode(f.double(), like=h.double()).to(dtype))


@pytest.mark.parametrize("shape", [(D,), (0, D), (2, 3, 4, D)])
def test_any_leading_shape(shape):
    sae = SAE(**parts(), activation=ss.TopK(3))
    f = sae.encode(torch.randn(shape))
    assert f.shape == (*shape[:-1], F) and sae.decode(f).shape == shape


def test_encode_and_decode_refuse_what_does_not_fit():
    sae = SAE(**parts(), activation=ss.ReLU())
    with pytest.raises(ValueError, match=r"h should have shape \[..., 6\], got \[4, 20\]"):
        sae.encode(torch.randn(4, F))
    with pytest.raises(ValueError, match=r"f should have shape \[..., 20\], got \[4, 6\]"):
        sae.decode(torch.randn(4, D))
    with pytest.raises(TypeError, match="floating point tensor, got torch.int64"):
        sae.encode(torch.ones(4, D, dtype=torch.int64))


def test_a_decoder_row_of_zeros_has_no_direction():
    given = parts()
    given["W_dec"][3] = 0
    sae = SAE(**given, activation=ss.TopK(4), rescale_acts_by_decoder_norm=True)
    h = torch.randn(5, D)
    assert torch.isfinite(sae.decode(sae.encode(h))).all()
    assert torch.equal(ss.ops.steer(h, sae.plan(Edit.set({3: 9}))), h)


def stored(given, tmp_path, dtype=None):
    path = tmp_path / "weights.safetensors"
    save_file({name: t.to(dtype or t.dtype).contiguous() for name, t in given.items()}, path)
    tensors = open_safetensors(path)
    return given | {name: tensors[name] for name in ("W_enc", "W_dec")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_on_disk_and_in_memory_are_one_sae(dtype, tmp_path):
    given = parts(dtype=dtype)
    memory, disk = SAE(**given, activation=ss.ReLU()), SAE(**stored(given, tmp_path), activation=ss.ReLU())
    assert disk.digest == memory.digest
    edit = Edit.set({3: 2, 19: 1, 0: 4}) | Edit.add({7: 1})
    for a, b in zip(vars(disk.plan(edit)).values(), vars(memory.plan(edit)).values(), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    h = torch.randn(3, D)
    assert torch.equal(disk.encode(h), memory.encode(h))
    assert torch.equal(disk.decode(disk.encode(h)), memory.decode(memory.encode(h)))


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
def test_nan_in_a_stored_row_is_named_when_it_is_read(name, tmp_path):
    given = parts()
    (given["W_enc"].T if name == "W_enc" else given["W_dec"])[4, 2] = float("nan")
    sae = SAE(**stored(given, tmp_path), activation=ss.TopK(3))
    sae.plan(Edit.set({3: 1}))
    with pytest.raises(ValueError, match=rf"{name} of \S+weights.safetensors has NaN or infinite values at feature 4"):
        sae.plan(Edit.set({3: 1, 4: 1}))
    with pytest.raises(ValueError, match=rf"{name} of \S+weights.safetensors has NaN"):
        sae.decode(sae.encode(torch.randn(2, D)))


VARIANTS = [
    lambda: SAE(**parts(), activation=ss.ReLU()),
    lambda: SAE(**parts(seed=1), activation=ss.ReLU()),
    lambda: SAE(**parts(), activation=ss.Identity()),
    lambda: SAE(**parts(), activation=ss.TopK(3)),
    lambda: SAE(**parts(), activation=ss.TopK(4)),
    lambda: SAE(**parts(), activation=ss.JumpReLU(torch.zeros(F))),
    lambda: SAE(**parts(), activation=ss.JumpReLU(torch.ones(F))),
    lambda: SAE(**parts(), activation=ss.Slots(2, rest=ss.ReLU())),
    lambda: SAE(**parts(), activation=ss.Slots(3, rest=ss.ReLU())),
    lambda: SAE(**parts(), activation=ss.Slots(2, rest=ss.JumpReLU(torch.ones(F)))),
    lambda: SAE(**parts(), activation=ss.ReLU(), normalize="layer_norm"),
    lambda: SAE(**parts(), activation=ss.ReLU(), apply_b_dec_to_input=False),
    lambda: SAE(**parts(), activation=ss.ReLU(), rescale_acts_by_decoder_norm=True),
    lambda: SAE(**parts() | {"b_enc": None}, activation=ss.ReLU()),
    lambda: SAE(**parts() | {"b_enc": None}, activation=ss.Gated(*torch.zeros(3, F))),
]


def test_digests_tell_saes_apart():
    assert len({make().digest for make in VARIANTS}) == len(VARIANTS)
    assert [make().digest for make in VARIANTS] == [make().digest for make in VARIANTS]
    assert SAE(**parts(), activation=ss.ReLU(), site=Site("m", "n")).digest == VARIANTS[0]().digest


def test_weights_are_shared_not_copied():
    given = parts()
    sae = SAE(**given, activation=ss.ReLU())
    other = sae.with_activation(ss.TopK(2))
    for one in (sae, other):
        assert one.W_enc.data_ptr() == given["W_enc"].data_ptr() and one.W_dec.data_ptr() == given["W_dec"].data_ptr()
        assert one.whole_encoder()[0].data_ptr() == sae.whole_encoder()[0].data_ptr()
    assert (sae.encode(torch.ones(1, D)) > 0).sum() > (other.encode(torch.ones(1, D)) > 0).sum() == 2
    assert other.digest != sae.digest


def test_to_the_device_it_is_on_is_itself():
    sae = SAE(**parts(), activation=ss.ReLU(), feature_maximum=torch.rand(F))
    assert sae.to("cpu") is sae and sae.device == torch.device("cpu")


def test_to_another_device_moves_everything_once():
    sae = SAE(**parts(), activation=ss.Slots(2, rest=ss.JumpReLU(torch.rand(F))), feature_maximum=torch.rand(F))
    there = sae.to("meta")
    tensors = (
        there.W_enc,
        there.W_dec,
        there.b_enc,
        there.b_dec,
        there.feature_maximum,
        there.activation.rest.threshold,
    )
    assert {t.device.type for t in tensors} == {"meta"} and there.device.type == "meta"
    assert sae.to("meta") is there and sae.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("activation", [ss.JumpReLU(torch.rand(F)), ss.TopK(4), ss.Slots(2, rest=ss.ReLU())])
@pytest.mark.parametrize("reconstruct", [False, True])
def test_on_a_gpu(activation, reconstruct):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    sae = SAE(**parts(), activation=activation, normalize="layer_norm")
    h, edit = torch.randn(4, D), Edit.set({3: 2, 19: 1}) | Edit.add({7: 1})
    there = sae.to("cuda")
    torch.testing.assert_close(there.encode(h.cuda()).cpu(), sae.encode(h))
    want = ss.ops.steer(h, sae.plan(edit, reconstruct=reconstruct))
    for plan in (there.plan(edit, reconstruct=reconstruct), sae.plan(edit, reconstruct=reconstruct).to("cuda")):
        torch.testing.assert_close(ss.ops.steer(h.cuda(), plan).cpu(), want)
