"""SAELens folders of both generations, live objects, and folders that are damaged or foreign."""

import json

import pytest
import torch
from lens import ARCHITECTURES, NORMS, TRANSCODERS, lens_sae
from safetensors.torch import load_file, save_file

import sparsesteer as ss
from sparsesteer import SAE, Edit, Site
from sparsesteer.storage import StoredTensor

D, F = 13, 37
METADATA = dict(model_name="gpt2", hook_name="blocks.3.hook_resid_post", neuronpedia_id="gpt2-small/4-res-jb")
METADATA_SITE = Site("gpt2", "blocks.3.hook_resid_post", None, None)


def saved(folder, architecture="standard", dtype="float32", **config):
    """(folder, sae_lens object) of a random SAE that sae_lens itself wrote."""
    lens = lens_sae(architecture, D, F, dtype=dtype, **config)
    for name, value in METADATA.items():
        setattr(lens.cfg.metadata, name, value)
    lens.save_model(folder)
    return folder, lens


def rewrite_config(folder, change):
    path = folder / "cfg.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def rewrite_weights(folder, change):
    path = folder / "sae_weights.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def assert_equal_codes(sae, lens, rtol=1e-12):
    """encode and decode against sae_lens, which is cast to fp64 first."""
    lens = lens.to(torch.float64)
    h = torch.randn(2, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 + 0.3
    with torch.no_grad():
        f = lens.encode(h)
        assert 0 < (f > 0).sum() < f.numel()
        torch.testing.assert_close(sae.encode(h), f, rtol=rtol, atol=rtol)
        torch.testing.assert_close(sae.decode(f, like=h), lens.decode(f), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("b_dec", [True, False])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "topk rescaled"])
def test_folders_that_sae_lens_wrote(architecture, b_dec, norm, tmp_path):
    extra = {"rescale_acts_by_decoder_norm": True} if architecture == "topk rescaled" else {}
    config = dict(normalize_activations=norm, apply_b_dec_to_input=b_dec, dtype="float64", **extra)
    folder, lens = saved(tmp_path / "sae", architecture.split()[0], **config)
    sae = SAE.load_from_disk(folder)
    assert isinstance(sae.W_enc, StoredTensor) and isinstance(sae.W_dec, StoredTensor)
    assert sae.site == Site(**METADATA, source=str(folder))
    assert_equal_codes(sae, lens)
    assert SAE.from_saelens(lens).digest == sae.digest


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_live_objects(architecture, norm):
    lens = lens_sae(architecture, D, F, normalize_activations=norm)
    lens.cfg.metadata.model_name = "gpt2"
    lens.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    sae = SAE.from_saelens(lens)
    assert sae.W_enc.data_ptr() == lens.W_enc.data_ptr() and not sae.W_enc.requires_grad
    assert sae.site == METADATA_SITE
    assert_equal_codes(sae, lens)


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_live_transcoders(architecture, tmp_path):
    lens = lens_sae(architecture, D, F, dtype="float32", d_out=9, apply_b_dec_to_input=False)
    lens.save_model(tmp_path)
    sae = SAE.from_saelens(lens)
    assert sae.transcoder and sae.d_out == 9 and (sae.W_skip is not None) == ("skip" in architecture)
    assert sae.digest == SAE.load_from_disk(tmp_path).digest
    h = torch.randn(4, D, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(sae.decode(sae.encode(h), like=h), lens(h))


def test_a_live_object_that_is_not_whitened_yet_is_refused():
    lens = lens_sae("standard", D, F, normalize_activations="covariance_whitening")
    with pytest.raises(ValueError, match="use fold_activation_whitening first"):
        SAE.from_saelens(lens)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_files_are_computed_in_fp32(architecture, dtype, tmp_path):
    folder, lens = saved(tmp_path, architecture, dtype)
    sae = SAE.load_from_disk(folder)
    assert str(sae.W_enc.dtype) == f"torch.{dtype}"
    assert sae.whole_encoder()[0].dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    assert sae.plan(Edit.set({3: 1})).encoder.dtype == torch.float32
    assert_equal_codes(sae, lens, rtol=1e-6)
    assert SAE.from_saelens(lens.to(getattr(torch, dtype))).digest == sae.digest


def flat(config):
    """The configuration as sae_lens wrote it before version 6."""
    metadata = config.pop("metadata")
    config["hook_point"], config["model_name"] = metadata["hook_name"], metadata["model_name"]
    config["neuronpedia_id"] = metadata["neuronpedia_id"]
    config["hook_point_layer"], config["activation_fn_str"] = 3, "relu"
    if config["architecture"] == "topk":
        config["activation_fn_str"], config["activation_fn_kwargs"] = "topk", {"k": config.pop("k")}
    if config["architecture"] in ("standard", "topk"):
        config.pop("architecture")
    if config["normalize_activations"] == "none":
        config["normalize_activations"] = False


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_older_configuration(architecture, norm, tmp_path):
    folder, lens = saved(tmp_path, architecture, "float64", normalize_activations=norm)
    rewrite_config(folder, flat)
    sae = SAE.load_from_disk(folder)
    assert sae.site == Site(**METADATA, source=str(folder))
    theirs = type(lens).load_from_disk(folder)
    assert type(theirs) is type(lens)
    assert_equal_codes(sae, theirs)


def test_the_older_configuration_with_training_time_scaling(tmp_path):
    folder, lens = saved(tmp_path, dtype="float64")
    rewrite_config(folder, flat)
    rewrite_config(folder, lambda c: c.update(normalize_activations=True))
    rewrite_weights(folder, lambda w: w.update(scaling_factor=torch.ones(F)))
    assert_equal_codes(SAE.load_from_disk(folder), type(lens).load_from_disk(folder))


def test_feature_statistics_beside_the_weights(tmp_path):
    folder, _ = saved(tmp_path)
    assert SAE.load_from_disk(folder).feature_maximum is None
    save_file({"maximum": torch.arange(F) / 2}, folder / "feature_statistics.safetensors")
    assert SAE.load_from_disk(folder).feature_maximum.tolist() == (torch.arange(F) / 2).tolist()
    save_file({"maximum": torch.ones(3)}, folder / "feature_statistics.safetensors")
    with pytest.raises(ValueError, match="feature_maximum should have shape"):
        SAE.load_from_disk(folder)
    save_file({"minimum": torch.ones(F)}, folder / "feature_statistics.safetensors")
    with pytest.raises(ValueError, match="feature_statistics.safetensors: maximum is missing.*which hold minimum"):
        SAE.load_from_disk(folder)


CONFIG_DAMAGE = {
    "d_in": (lambda c: c.update(d_in=12), r"d_in, d_sae = \(12, 37\), but W_enc has shape \[13, 37\]"),
    "d_sae": (lambda c: c.update(d_sae="37"), "but W_enc has shape"),
    "temporal": (lambda c: c.update(architecture="temporal"), "'temporal' is not supported; standard"),
    "transcoder": (lambda c: c.update(architecture="transcoder"), "apply_b_dec_to_input=False"),
    "heads": (lambda c: c.update(reshape_activations="heads"), "reshape_activations='heads' is not supported"),
    "b_dec applied a little": (lambda c: c.update(apply_b_dec_to_input=1), "should be true or false, got 1"),
    "hook as a number": (lambda c: c["metadata"].update(hook_name=3), "hook_name .* should be a text, got 3"),
    "architecture as a list": (lambda c: c.update(architecture=[1]), "not supported"),
    "whitening": (lambda c: c.update(normalize_activations="covariance_whitening"), "needs activation_whitening"),
    "norm as a list": (lambda c: c.update(normalize_activations=["none"]), "is not supported"),
    "gated weights missing": (lambda c: c.update(architecture="gated"), "b_gate is missing from the weights"),
    "threshold missing": (lambda c: c.update(architecture="jumprelu"), "threshold is missing from the weights"),
    "topk without k": (lambda c: c.update(architecture="topk"), "whole number k in its configuration, got None"),
    "k as text": (lambda c: c.update(architecture="topk", k="3"), "whole number k.*'3'"),
    "k of 0": (lambda c: c.update(architecture="topk", k=0), "k should be a positive integer"),
    "tanh": (lambda c: c.update(activation_fn_str="tanh-relu"), "'tanh-relu' is not supported"),
    "metadata as text": (lambda c: c.update(metadata="gpt2"), "metadata in the configuration should be an object"),
}


@pytest.mark.parametrize("change, message", CONFIG_DAMAGE.values(), ids=CONFIG_DAMAGE)
def test_configuration_and_weights_that_disagree(change, message, tmp_path):
    folder, _ = saved(tmp_path / "sae")
    rewrite_config(folder, change)
    with pytest.raises(ValueError, match=message):
        SAE.load_from_disk(folder)


WEIGHT_DAMAGE = {
    "no W_enc": (lambda w: w.pop("W_enc"), "W_enc is missing from the weights, which hold W_dec, b_dec, b_enc"),
    "no b_dec": (lambda w: w.pop("b_dec"), "b_dec is missing"),
    "no b_enc": (lambda w: w.pop("b_enc"), "b_enc is missing"),
    "W_enc transposed": (lambda w: w.update(W_enc=w["W_enc"].T.contiguous()), r"W_enc has shape \[37, 13\]"),
    "W_dec transposed": (lambda w: w.update(W_dec=w["W_dec"].T.contiguous()), "transposed"),
    "W_enc a number": (lambda w: w.update(W_enc=torch.tensor(1.0)), r"W_enc should be a matrix, got shape \[\]"),
    "W_enc of three": (lambda w: w.update(W_enc=torch.ones(13, 37, 1)), "W_enc should be a matrix"),
    "b_enc a matrix": (lambda w: w.update(b_enc=torch.ones(37, 2)), r"b_enc should be a vector, got shape \[37, 2\]"),
    "b_enc of integers": (lambda w: w.update(b_enc=torch.ones(37).int()), "b_enc should be floating point"),
    "b_enc too short": (lambda w: w.update(b_enc=torch.ones(36)), "b_enc should have shape"),
    "NaN in b_dec": (lambda w: w["b_dec"].fill_(float("nan")), "b_dec has NaN"),
    "scaling": (lambda w: w.update(scaling_factor=torch.full((F,), 2.0)), "not all ones; fold it into W_dec"),
}


@pytest.mark.parametrize("change, message", WEIGHT_DAMAGE.values(), ids=WEIGHT_DAMAGE)
def test_damaged_weights_are_named(change, message, tmp_path):
    folder, _ = saved(tmp_path / "sae")
    rewrite_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        SAE.load_from_disk(folder)


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
def test_integer_matrices_are_refused(name, tmp_path):
    folder, _ = saved(tmp_path / "sae")
    rewrite_weights(folder, lambda w: w.update({name: w[name].int()}))
    with pytest.raises(ValueError, match=f"sae_weights.safetensors: {name} should be floating point, got torch.int32"):
        SAE.load_from_disk(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '{"d_in": 1, "d_in": 2}', "\udcff"], ids=len)
def test_a_configuration_that_is_no_object_is_refused(text, tmp_path):
    folder, _ = saved(tmp_path / "sae")
    (folder / "cfg.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"cfg\.json"):
        SAE.load_from_disk(folder)


def test_truncated_weights_are_refused(tmp_path):
    folder, _ = saved(tmp_path / "sae")
    path = folder / "sae_weights.safetensors"
    whole = path.read_bytes()
    for length in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="sae_weights.safetensors"):
            SAE.load_from_disk(folder)


def test_a_pickle_in_place_of_the_weights_is_refused(tmp_path):
    folder, _ = saved(tmp_path / "sae")
    torch.save({"W_enc": torch.ones(D, F)}, folder / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        SAE.load_from_disk(folder)


def test_folders_that_are_no_sae(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        SAE.load_from_disk(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"the folder holds nothing; supported are: cfg.json and sae_weights"):
        SAE.load_from_disk(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a known SAE: the folder holds cfg.json; supported are"):
        SAE.load_from_disk(tmp_path)
    with pytest.raises(ValueError, match="is not a known SAE: the file is none of .safetensors, .npz, .pt, .pth"):
        SAE.load_from_disk(tmp_path / "cfg.json")


def test_from_pretrained_goes_through_sae_lens(monkeypatch):
    import sae_lens

    lens, asked = lens_sae("jumprelu", D, F), []
    lens.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", lambda *names: asked.append(names) or lens)
    sae = SAE.from_pretrained("a-release", "layer_3/width_37")
    assert asked == [("a-release", "layer_3/width_37")]
    assert sae.site == Site(None, "blocks.3.hook_resid_post", None, "a-release/layer_3/width_37")
    assert_equal_codes(sae, lens)


def test_from_pretrained_without_sae_lens_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sae_lens", None)
    with pytest.raises(ImportError, match=r"pip install sparsesteer\[lens\]"):
        SAE.from_pretrained("a-release", "layer_3")


@pytest.mark.parametrize("thing", [None, {}, torch.nn.Linear(2, 2)], ids=["None", "dict", "module"])
def test_from_saelens_takes_sae_lens_objects(thing):
    with pytest.raises(TypeError, match=f"takes a sae_lens SAE, got {type(thing).__name__}"):
        SAE.from_saelens(thing)


def test_steering_through_a_folder_equals_steering_through_the_object(tmp_path):
    folder, lens = saved(tmp_path, "jumprelu", normalize_activations="layer_norm")
    edit, h = Edit.set({3: 2.0, 30: 1}) | Edit.add({5: 1}), torch.randn(4, D)
    one, two = (ss.ops.steer(h, sae.plan(edit)) for sae in (SAE.load_from_disk(folder), SAE.from_saelens(lens)))
    assert torch.equal(one, two) and not torch.equal(one, h)
