"""SAEs that read one tensor and write another, and skip connections: arithmetic, plans, every op that takes them."""

import pytest
import torch
from small_sae import D, F, every_activation

import sparsesteer as ss
from sparsesteer import SAE, Edit, Site, SteeringPlan
from sparsesteer._layout import OutputScale

pytestmark = pytest.mark.usefixtures("one_thread")
D_OUT = 31
NORMS = ("none", "layer_norm", "constant_norm_rescale")
EDIT = Edit.set({3: 2.0, 150: -1.0}) | Edit.scale({7: 3.0}) | Edit.add({9: 1.5})


def parts(d_out=D_OUT, dtype=torch.float32, seed=0, skip=False):
    g = torch.Generator().manual_seed(seed)
    given = {
        "W_enc": torch.randn(D, F, generator=g) * D**-0.5,
        "W_dec": torch.randn(F, d_out, generator=g) * D**-0.5,
        "b_enc": torch.randn(F, generator=g) * 0.1,
        "b_dec": torch.randn(d_out, generator=g),
    }
    if skip:
        given["W_skip"] = torch.randn(d_out, D, generator=g) * D**-0.5
    return {name: tensor.to(dtype) for name, tensor in given.items()}


def transcoder(activation=None, **options):
    given = parts(options.pop("d_out", D_OUT), options.pop("dtype", torch.float32), skip=options.pop("skip", False))
    activation = activation or ss.ReLU()
    if isinstance(activation, ss.Gated):
        given["b_enc"] = None
    return SAE(**given, activation=activation, transcoder=True, **options)


def tokens(n=6, d=D, dtype=torch.float32, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype) + 0.2


def normed(x, norm):
    if norm == "layer_norm":
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.std(-1, keepdim=True) + 1e-5)
    return x * D**0.5 / x.norm(dim=-1, keepdim=True) if norm == "constant_norm_rescale" else x


def edited(f):
    """EDIT by hand."""
    f = f.clone()
    f[..., 3], f[..., 150], f[..., 7], f[..., 9] = 2.0, -1.0, 3 * f[..., 7], f[..., 9] + 1.5
    return f


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
def test_encode_and_decode_by_hand(norm, skip):
    sae, x = transcoder(dtype=torch.float64, normalize=norm, skip=skip), tokens(dtype=torch.float64)
    f = torch.relu(normed(x, norm) @ sae.W_enc + sae.b_enc)
    want = f @ sae.W_dec + sae.b_dec + (x @ sae.W_skip.T if skip else 0)
    torch.testing.assert_close(sae.encode(x), f, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.decode(f, like=x), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.decode(sae.encode_sparse(x), like=x), want, rtol=1e-12, atol=1e-12)
    if not skip:
        assert torch.equal(sae.decode(f), sae.decode(f, like=x))  # an input norm is no business of the output


def test_a_skip_connection_needs_the_encoded_tensor():
    sae = transcoder(skip=True)
    for f in (torch.zeros(2, F), sae.encode_sparse(tokens(2))):
        with pytest.raises(ValueError, match=r"a skip connection needs the encoded tensor: decode\(f, like=h\)"):
            sae.decode(f)
    with pytest.raises(ValueError, match=r"like should have shape \[..., 48\], got \[2, 31\]"):
        sae.decode(torch.zeros(2, F), like=torch.zeros(2, D_OUT))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("name, activation", every_activation().items(), ids=every_activation())
def test_an_edit_keeps_the_error_and_the_skip_connection(name, activation, backend, norm):
    sae = transcoder(activation, normalize=norm, skip=True)
    x, w = tokens(), tokens(d=D_OUT, seed=2)
    plan = sae.plan(EDIT)
    assert plan.decoder.shape[1] == D_OUT and plan.scale_rule == OutputScale.ONE
    f = sae.encode(x)
    want = w + sae.decode(edited(f), like=x) - sae.decode(f, like=x)
    torch.testing.assert_close(ss.ops.steer(x, plan, into=w, backend=backend), want, rtol=1e-4, atol=1e-5)


STRENGTHS = (1.0, 0.5, torch.tensor([1.0, 0.0, 0.5, -1.0, 0.0, 2.0]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("kind", ["relu", "topk"])
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
def test_reconstruct_by_hand(skip, kind, backend, residual, norm):
    sae = transcoder(every_activation()[kind], normalize=norm, skip=skip)
    x, w = tokens(), tokens(d=D_OUT, seed=2)
    rest = tokens(seed=3) if residual else None
    read = x if rest is None else x + rest
    plan, change = sae.plan(EDIT, reconstruct=True), sae.decode(edited(sae.encode(read)), like=read) - w
    for strength in STRENGTHS:
        got = ss.ops.steer(x, plan, strength, into=w, residual=rest, backend=backend)
        s = strength[:, None] if isinstance(strength, torch.Tensor) else strength
        torch.testing.assert_close(got, w + s * change, rtol=1e-4, atol=1e-4)
    assert torch.equal(got[strength == 0], w[strength == 0])


def test_reconstruct_gives_every_token_its_length():
    sae, x, w = transcoder(skip=True), tokens(), tokens(d=D_OUT, seed=2)
    got = ss.ops.steer(x, sae.plan(EDIT, reconstruct=True, preserve_norm=True), into=w)
    torch.testing.assert_close(got.norm(dim=-1), w.norm(dim=-1))
    want = sae.decode(edited(sae.encode(x)), like=x)
    torch.testing.assert_close(torch.cosine_similarity(got, want), torch.ones(6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_reconstruct_in_other_dtypes_rounds_once(dtype):
    sae, x, w = transcoder(skip=True, normalize="layer_norm"), tokens(dtype=dtype), tokens(d=D_OUT, dtype=dtype)
    got = ss.ops.steer(x, sae.plan(EDIT, reconstruct=True), into=w)
    want = sae.decode(edited(sae.encode(x.double())), like=x.double())
    assert got.dtype == dtype
    torch.testing.assert_close(got, want.to(dtype))


def test_reconstruct_of_an_sae_with_a_skip_connection_undoes_its_norm():
    given = parts(D, torch.float64, skip=True)
    sae, x = SAE(**given, activation=ss.ReLU(), normalize="layer_norm"), tokens(dtype=torch.float64)
    assert not sae.transcoder and sae.apply_b_dec_to_input
    plain = SAE(**given | {"W_skip": None}, activation=ss.ReLU(), normalize="layer_norm")
    want = plain.decode(plain.encode(x), like=x) + x @ given["W_skip"].T
    torch.testing.assert_close(sae.decode(sae.encode(x), like=x), want)
    torch.testing.assert_close(ss.ops.steer(x, sae.plan(Edit(), reconstruct=True)), want)
    assert torch.equal(ss.ops.steer(x, sae.plan(EDIT)), ss.ops.steer(x, plain.plan(EDIT)))


def test_reconstruct_has_a_gradient():
    sae, w = transcoder(skip=True, dtype=torch.float64, normalize="layer_norm"), tokens(d=D_OUT, dtype=torch.float64)
    x = tokens(dtype=torch.float64).requires_grad_()
    plan = sae.plan(EDIT, reconstruct=True)
    assert torch.autograd.gradcheck(lambda x, w: ss.ops.steer(x, plan, into=w), (x, w.requires_grad_()))


def test_out_and_many_axes():
    sae, x, w = transcoder(skip=True), tokens(12).view(3, 4, D), tokens(12, D_OUT).view(3, 4, D_OUT)
    for reconstruct in (False, True):
        plan = sae.plan(EDIT, reconstruct=reconstruct)
        want = ss.ops.steer(x, plan, into=w)
        assert want.shape == w.shape
        assert torch.equal(ss.ops.steer(x, plan, into=w, out=torch.empty_like(w)), want)


def test_what_is_written_must_be_given_where_the_widths_differ():
    sae, x = transcoder(), tokens()
    bank = ss.Bank(sae, capacity=8, slots=2)
    for call in (
        lambda: ss.ops.steer(x, sae.plan(EDIT)),
        lambda: ss.ops.steer(x, sae.plan(EDIT, reconstruct=True)),
        lambda: ss.ops.steer_slots(x, bank, torch.zeros(6, dtype=torch.int32)),
    ):
        with pytest.raises(ValueError, match=r"read has width 48, what is written 31 \(a transcoder\).*into=w"):
            call()


def test_a_bank_of_transcoder_plans():
    sae, x, w = transcoder(), tokens(), tokens(d=D_OUT, seed=2)
    bank = ss.Bank(sae, capacity=8, slots=2)
    slot = torch.full((6,), bank.add(sae.plan(EDIT)), dtype=torch.int32)
    slot[::2] = -1
    got = ss.ops.steer_slots(x, bank, slot, into=w)
    assert torch.equal(got[::2], w[::2])
    torch.testing.assert_close(got[1::2], ss.ops.steer(x, sae.plan(EDIT), into=w)[1::2])


def test_of_one_width_it_is_told_by_the_argument():
    given = parts(D)
    plain, trans = SAE(**given, activation=ss.ReLU()), SAE(**given, activation=ss.ReLU(), transcoder=True)
    assert plain.apply_b_dec_to_input and not trans.apply_b_dec_to_input and not plain.transcoder
    assert (plain.d_in, plain.d_out, trans.d_out) == (D, D, D)
    off = SAE(**given, activation=ss.ReLU(), apply_b_dec_to_input=False)
    assert len({plain.digest, trans.digest, off.digest}) == 3
    assert "D_out=48" in repr(trans) and "D_out" not in repr(plain)


WRONG = {
    "b_dec of width D": (lambda p: p.update(b_dec=torch.ones(D)), r"b_dec should have shape \[31\], got \[48\]"),
    "W_skip transposed": (lambda p: p.update(W_skip=torch.ones(D, D_OUT)), r"W_skip should have shape \[31, 48\]"),
    "W_skip a vector": (lambda p: p.update(W_skip=torch.ones(D)), r"W_skip should be a matrix, got shape \[48\]"),
    "NaN in W_skip": (lambda p: p.update(W_skip=torch.full((D_OUT, D), torch.nan)), "W_skip has NaN"),
    "b_dec applied": (lambda p: p.update(apply_b_dec_to_input=True), "b_dec of a transcoder belongs to what it writes"),
    "another F": (lambda p: p.update(W_dec=torch.ones(F + 1, D_OUT)), "disagree"),
}


@pytest.mark.parametrize("spoil, message", WRONG.values(), ids=WRONG)
def test_what_is_refused(spoil, message):
    given = parts() | {"activation": ss.ReLU()}
    spoil(given)
    with pytest.raises(ValueError, match=message):
        SAE(**given)


def test_copies_have_the_skip_connection():
    sae = transcoder(skip=True)
    there, other = sae.to("meta"), sae.with_activation(ss.TopK(4))
    assert there.W_skip.device.type == "meta" and there.transcoder
    assert other.W_skip is sae.W_skip and other.whole_skip().data_ptr() == sae.whole_skip().data_ptr()
    assert len({sae.digest, other.digest, transcoder().digest}) == 3


def test_a_plan_of_a_transcoder_is_saved_and_found_again(tmp_path):
    site = Site("m", "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")
    sae, x, w = transcoder(skip=True, site=site), tokens(), tokens(d=D_OUT, seed=2)
    for reconstruct in (False, True):
        plan = sae.plan(EDIT, reconstruct=reconstruct)
        loaded = SteeringPlan.load(plan.save(tmp_path / "plan.safetensors"), sae=sae)
        assert loaded.site == site and torch.equal(ss.ops.steer(x, loaded, into=w), ss.ops.steer(x, plan, into=w))


@pytest.mark.parametrize("enc, dec", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float64", "float32"),
                                      ("bfloat16", "bfloat16"), ("float32", "float64")])  # fmt: skip
@pytest.mark.parametrize("norm", NORMS)
def test_matrices_of_two_dtypes(enc, dec, norm):
    """Every op wants encoder and decoder in one dtype, also where only one of them is changed by folding."""
    given = parts(D)
    given["W_enc"], given["W_dec"] = given["W_enc"].to(getattr(torch, enc)), given["W_dec"].to(getattr(torch, dec))
    sae, x = SAE(**given, activation=ss.ReLU(), normalize=norm), tokens()
    f = sae.encode(x)
    error = x - sae.decode(f, like=x)
    want = sae.decode(edited(f), like=x)
    torch.testing.assert_close(ss.ops.steer(x, sae.plan(EDIT)), want + error, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ss.ops.steer(x, sae.plan(EDIT, reconstruct=True)), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(sae.encode_sparse(x), like=x), sae.decode(f, like=x), rtol=1e-4, atol=1e-4)
