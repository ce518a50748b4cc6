"""SAE.save: SAELens's format, read back by us and by sae_lens, complete or not there at all."""

import json
from dataclasses import replace

import pytest
import torch
from sae_lens import SAE as LensSAE
from safetensors.torch import load_file
from small_sae import D, F, every_activation, hidden, make_sae
from test_transcoders import transcoder

import sparsesteer as ss
from sparsesteer import SAE, Site, saving

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
SITE = Site("gpt2", "blocks.3.hook_resid_post", neuronpedia_id="gpt2-small/3-res-jb")
NORMS = ("none", "layer_norm", "constant_norm_rescale")
SAVABLE = {name: each for name, each in every_activation().items() if name not in ("identity", "slots")}
SAVABLE |= {"one threshold": ss.JumpReLU(0.3), "no threshold": ss.JumpReLU(-1.0)}


def assert_equal_codes(folder, sae, h):
    lens = LensSAE.load_from_disk(folder).to(torch.float64)
    h = h.double()
    with torch.no_grad():
        f = lens.encode(h)
        torch.testing.assert_close(sae.encode(h), f, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae.decode(f, like=h), lens.decode(f), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", SAVABLE.values(), ids=SAVABLE)
def test_round_trip(activation, norm, tmp_path):
    sae = make_sae(activation, normalize=norm, site=SITE, feature_maximum=torch.rand(F))
    again = SAE.load_from_disk(sae.save(tmp_path / "sae"))
    assert again.site == replace(SITE, source=str(tmp_path / "sae"))
    assert torch.equal(again.encode(hidden()), sae.encode(hidden()))
    assert torch.equal(again.feature_maximum, sae.feature_maximum)
    assert_equal_codes(tmp_path / "sae", sae, hidden())
    if not isinstance(activation, ss.JumpReLU) or isinstance(activation.threshold, torch.Tensor):
        assert again.digest == sae.digest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_are_kept_as_they_are(dtype, tmp_path):
    sae = make_sae(dtype=dtype, site=SITE)
    again = SAE.load_from_disk(sae.save(tmp_path / "sae"))
    for name in ("W_enc", "W_dec"):
        assert torch.equal(getattr(again, name).load().to(dtype), getattr(sae, name))
    assert torch.equal(again.b_dec.double(), sae.b_dec.double()) and again.digest == sae.digest
    stored = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    assert len({tensor.dtype for tensor in stored.values()}) == 1  # sae_lens casts all to one


@pytest.mark.parametrize("options", [{}, {"skip": True}, {"skip": True, "d_out": D}], ids=["", "skip", "one width"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_transcoders(name, norm, options, tmp_path):
    site = Site("gpt2", "blocks.3.hook_mlp_in", "blocks.3.hook_mlp_out")
    sae = transcoder(every_activation()[name], normalize=norm, site=site, **options)
    again = SAE.load_from_disk(sae.save(tmp_path / "sae"))
    assert again.digest == sae.digest and again.transcoder and again.site.hook_name_out == site.hook_name_out
    lens, h = LensSAE.load_from_disk(tmp_path / "sae").to(torch.float64), hidden().double()
    with torch.no_grad():
        torch.testing.assert_close(sae.decode(sae.encode(h), like=h), lens(h), rtol=1e-5, atol=1e-5)


def test_topk_in_units_of_decoder_norms_has_a_rule_others_are_folded(tmp_path):
    for name in ("topk", "relu", "jumprelu"):
        sae = make_sae(every_activation()[name], rescale_acts_by_decoder_norm=True)
        again = SAE.load_from_disk(sae.save(tmp_path / name))
        assert again.rescale_acts_by_decoder_norm == (name == "topk")
        torch.testing.assert_close(again.encode(hidden()), sae.encode(hidden()))
        assert_equal_codes(tmp_path / name, sae, hidden())


def test_gated_in_units_of_decoder_norms_is_folded(tmp_path):
    sae = make_sae(every_activation()["gated"], rescale_acts_by_decoder_norm=True)
    again = SAE.load_from_disk(sae.save(tmp_path / "sae"))
    torch.testing.assert_close(again.encode(hidden()), sae.encode(hidden()))


def test_from_another_format_and_attention_heads(tmp_path):
    from cases_lens import CASES

    sae = SAE.load_from_disk(CASES["gemma scope att"](tmp_path / "gemma").path)
    again = SAE.load_from_disk(sae.save(tmp_path / "sae"))
    assert again.digest == sae.digest and again.site.hook_name == "blocks.20.attn.hook_z"
    heads = torch.randn(3, 4, sae.d_in // 4)
    with torch.no_grad():
        f = LensSAE.load_from_disk(tmp_path / "sae").encode(heads)
    torch.testing.assert_close(again.encode(heads.flatten(1)), f)


REFUSED = {
    "identity": (lambda: make_sae(ss.Identity()), "no architecture for a Identity SAE"),
    "slots": (lambda: make_sae(ss.Slots(2, every_activation()["gated"])), "no architecture for a Slots SAE"),
    "topk transcoder": (lambda: transcoder(ss.TopK(3)), "no architecture for a TopK transcoder"),
    "skip": (
        lambda: SAE(W_enc=torch.ones(D, F), W_dec=torch.ones(F, D), W_skip=torch.eye(D), activation=ss.ReLU()),
        "no architecture for a ReLU SAE with a skip connection",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_what_saelens_has_no_architecture_for(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make().save(tmp_path / "sae")
    assert not any(tmp_path.iterdir())


def test_nothing_that_exists_is_overwritten(tmp_path):
    sae = make_sae()
    (tmp_path / "empty").mkdir()
    sae.save(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    for name in ("empty", "file"):
        with pytest.raises(FileExistsError, match="exists already; remove it, or choose another name"):
            sae.save(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, "_configuration", fails)
    with pytest.raises(OSError, match="no space left"):
        make_sae().save(tmp_path / "deep" / "sae")
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_configuration_is_saelens_6(tmp_path):
    config = json.loads((make_sae(ss.TopK(7), site=SITE).save(tmp_path / "sae") / "cfg.json").read_text())
    assert config["architecture"] == "topk" and config["k"] == 7 and config["metadata"]["model_name"] == "gpt2"
    assert (config["d_in"], config["d_sae"], config["dtype"]) == (D, F, "float32")
