"""What single formats may hold beside the usual, and what of it is refused with which words."""

import json

import cases_lens
import cases_owners
import numpy as np
import pytest
import torch
from format_case import D, F, inputs, weights
from lens import lens_sae
from safetensors.torch import load_file, save_file

from sparsesteer import SAE, JumpReLU, Site, TopK

pytestmark = pytest.mark.usefixtures("one_thread")
LENS, OWNERS = cases_lens.CASES, cases_owners.CASES


def edit_json(path, **changes):
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def edit_tensors(path, **changes):
    """Tensors of a safetensors, torch or npz file; None takes one away."""
    if path.suffix == ".npz":
        given = dict(np.load(path))
    else:
        given = dict(load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True))
    given = {name: value for name, value in (given | changes).items() if value is not None}
    if path.suffix == ".npz":
        np.savez(path, **given)
    elif path.suffix == ".safetensors":
        save_file(given, path)
    else:
        torch.save(given, path)


def config(name, file, **changes):
    return name, lambda folder: edit_json(folder / file, **changes)


def tensors(name, file, **changes):
    return name, lambda folder: edit_tensors(folder / file, **changes)


def trainer(**changes):
    def change(folder):
        path = folder / "config.json"
        described = json.loads(path.read_text())
        described["trainer"] |= changes
        path.write_text(json.dumps(described))

    return "BatchTopKSAE", change


ONES = torch.ones
REFUSED = {
    "signed": (*config("sparsify", "cfg.json", signed=True), "signed=True, features of both signs, is not read"),
    "groupmax": (*config("sparsify", "cfg.json", activation="groupmax"), "activation 'groupmax' is not read"),
    "k as text": (*config("sparsify", "cfg.json", k="7"), "k should be a whole number, got '7'"),
    "transcode as a number": (*config("sparsify", "cfg.json", transcode=1), "transcode should be true or false, got 1"),
    "no width": (*config("sparsify", "cfg.json", d_in=...), "d_in should be a whole number, got None"),
    "another width": (*config("sparsify", "cfg.json", num_latents=95), r"24, 95; encoder.weight is \[96, 24\]"),
    "W_skip that is not there": (
        *config("sparsify", "cfg.json", skip_connection=True), "skip_connection is True, W_skip is there: False"),
    "W_skip that is not said": (
        *tensors("sparsify", "sae.safetensors", W_skip=ONES(D, D)), "skip_connection is False, W_skip is there: True"),
    "no decoder": (*tensors("sparsify", "sae.safetensors", W_dec=None), "W_dec is missing from the weights"),
    "class": (*trainer(dict_class="CrossCoder"), "dict_class 'CrossCoder' is not read; AutoEncoder"),
    "class as a list": (*trainer(dict_class=["AutoEncoder"]), "is not read; AutoEncoder"),
    "model as a number": (*trainer(lm_name=3), "lm_name and submodule_name should be texts"),
    "no trainer": (*config("BatchTopKSAE", "config.json", trainer=[]), r"trainer should be an object, got \[\]"),
    "no threshold": (*tensors("BatchTopKSAE", "ae.pt", threshold=None), "batch top-k says nothing"),
    "many thresholds": (*tensors("BatchTopKSAE", "ae.pt", threshold=ONES(F)), "threshold should be a number"),
    "two names of b_dec": (
        *tensors("BatchTopKSAE", "ae.pt", bias=ONES(D)), "b_dec and bias are two names of one thing"),
    "a number for a matrix": (*tensors("BatchTopKSAE", "ae.pt", **{"encoder.weight": 3}), "be a tensor, got int"),
    "two k": (*config("AutoEncoderTopK", "config.json", trainer={"dict_class": "AutoEncoderTopK", "k": 8}),
              "ae.pt: k is 7, but 8 in config.json"),
    "glu": (*config("llama scope", "hyperparams.json", use_glu_encoder=True), "use_glu_encoder, a second encoder"),
    "batch norm": (*config("llama scope", "hyperparams.json", norm_activation="batch-wise"), "batch-wise' is not"),
    "no norms": (
        *config("llama scope", "hyperparams.json", dataset_average_activation_norm=3), "should be an object, got 3"),
    "norm of zero": (
        *config("llama scope", "hyperparams.json", dataset_average_activation_norm={"in": 0}), "in should be positive"),
    "norm as text": (*config("llama scope", "hyperparams.json", dataset_average_activation_norm={"in": "8"}),
                     "in should be a number from 0, got '8'"),
    "threshold as text": (*config("llama scope", "hyperparams.json", jump_relu_threshold="1"),
                          "jump_relu_threshold should be a number from 0, got '1'"),
    "gelu": (*config("llama scope", "hyperparams.json", act_fn="gelu"), "act_fn 'gelu' is not read"),
    "hook as a list": (*config("llama scope", "hyperparams.json", hook_point_in=[]), "a hook point should be a text"),
    "norms of decoder rows": (
        *tensors("llama scope", "checkpoints/final.safetensors", **{"decoder.weight": ONES(D, F)}),
        "decoder rows have norms other than 1; transform the parameters"),
    "affine that is not there": (*config("gemma scope 2", "config.json", affine_connection=True),
                                 "affine_connection is True, affine_skip_connection is there: False"),
    "affine that is not said": (
        *tensors("gemma scope 2 transcoder", "params.safetensors", affine_skip_connection=ONES(D, D)),
        "affine_connection is False, affine_skip_connection is there: True"),
    "architecture": (*config("gemma scope 2", "config.json", architecture="topk"), "'topk' is not read; jump_relu is"),
    "hook point as a number": (*config("gemma scope 2", "config.json", hf_hook_point_in=3), "should be a text, got 3"),
    "model as a list": (*config("gemma scope 2", "config.json", model_name=[]), "model_name should be a text"),
    "cases of a name": (
        *tensors("gemma scope res", "params.npz", w_enc=np.ones((D, F), np.float32)), "are names of one thing"),
    "aliases of a name": (
        *tensors("gemma scope res", "params.npz", wenc=np.ones((D, F), np.float32)), "wenc are two names of one thing"),
    "a factor": (*tensors("gemma scope res", "params.npz", scaling_factor=np.full(F, 2, np.float32)), "not all ones"),
    "no activation threshold": (*tensors("gemma scope res", "params.npz", threshold=None), "threshold is missing"),
    "a NaN": (*tensors("gemma scope res", "params.npz", b_enc=np.full(F, np.nan, np.float32)), "b_enc has NaN"),
    "integers": (*tensors("gemma scope res", "params.npz", W_dec=np.ones((F, D), int)), "should be floating point"),
    "other shapes": (*tensors("gemma scope res", "params.npz", W_dec=np.ones((F - 1, D), np.float32)), "disagree"),
}  # fmt: skip


@pytest.mark.parametrize("name, change, message", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(name, change, message, tmp_path):
    case = (LENS | OWNERS)[name](tmp_path)
    SAE.load_from_disk(case.path)
    change(case.path)
    with pytest.raises(ValueError, match=message) as raised:
        SAE.load_from_disk(case.path)
    assert str(case.path) in str(raised.value)


def test_cross_layer_transcoders_are_refused(tmp_path):
    case = LENS["gemma scope 2"](tmp_path)
    file = case.path / "params.safetensors"
    given = load_file(file)
    save_file(given | {"w_dec": torch.ones(F, 5, D)}, file)
    with pytest.raises(ValueError, match="is a cross-layer transcoder or crosscoder: its features write to 5 layers"):
        SAE.load_from_disk(case.path)
    for name in ("enc", "dec"):
        save_file({f"W_{name}_3": torch.ones(F, D), "b_enc_3": torch.ones(F)}, tmp_path / f"W_{name}_3.safetensors")
        with pytest.raises(ValueError, match="is of a cross-layer transcoder"):
            SAE.load_from_disk(tmp_path / f"W_{name}_3.safetensors")


def test_a_saved_threshold_of_topk_training_makes_llama_scope_jumprelu(tmp_path):
    """As its own library loads it; without one its TopK is kept."""
    case = LENS["llama scope"](tmp_path)
    config = case.path / "hyperparams.json"
    before = SAE.load_from_disk(case.path)
    edit_json(config, act_fn="topk")
    assert SAE.load_from_disk(case.path).activation.threshold == before.activation.threshold
    edit_json(config, jump_relu_threshold=0.0)
    assert isinstance(before.activation, JumpReLU) and SAE.load_from_disk(case.path).activation.k == 50
    assert isinstance(SAE.load_from_disk(case.path, k=50).activation, TopK)


def test_llama_scope_that_was_not_scaled_or_by_token(tmp_path):
    case = LENS["llama scope"](tmp_path)
    linear = load_file(case.path / "checkpoints/final.safetensors")
    h = inputs(8).float()
    edit_json(case.path / "hyperparams.json", norm_activation="inference", act_fn="relu")
    plain = torch.relu(h @ linear["encoder.weight"].T + linear["encoder.bias"])
    torch.testing.assert_close(SAE.load_from_disk(case.path).encode(h), plain)
    edit_json(case.path / "hyperparams.json", norm_activation="token-wise", apply_decoder_bias_to_pre_encoder=True)
    scaled = h * D**0.5 / h.norm(dim=-1, keepdim=True) - linear["decoder.bias"]
    want = torch.relu(scaled @ linear["encoder.weight"].T + linear["encoder.bias"])
    torch.testing.assert_close(SAE.load_from_disk(case.path).encode(h), want)


def test_circuit_tracer_files_with_thresholds_skips_and_the_other_way_round(tmp_path):
    given = weights()
    turned = {name: given[name].T.contiguous() for name in ("W_enc", "W_dec")}
    stored = {**given, **turned, "activation_function.threshold": given["threshold"], "W_skip": torch.eye(D)}
    stored.pop("threshold")
    save_file(stored, tmp_path / "layer_3.safetensors")
    sae, h = SAE.load_from_disk(tmp_path / "layer_3.safetensors"), inputs(8).float()
    z = h @ given["W_enc"] + given["b_enc"]
    f = z * (z > given["threshold"])
    torch.testing.assert_close(sae.encode(h), f)
    torch.testing.assert_close(sae.decode(f, like=h), f @ given["W_dec"] + given["b_dec"] + h)
    assert sae.transcoder and sae.site == Site(source=str(tmp_path / "layer_3.safetensors"))


@pytest.mark.parametrize("b_dec", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_whitening_of_a_checkpoint_is_folded_as_sae_lens_folds_it(architecture, b_dec, tmp_path):
    lens = lens_sae(
        architecture, D, F, dtype="float32", normalize_activations="covariance_whitening", apply_b_dec_to_input=b_dec
    )
    lens.save_model(tmp_path)
    g = torch.Generator().manual_seed(4)
    matrix = torch.randn(D, D, generator=g, dtype=torch.float64) + 5 * torch.eye(D)
    statistics = {
        "mean": torch.randn(D, generator=g).double(),
        "matrix": matrix,
        "inverse_matrix": matrix.inverse().contiguous(),
    }
    save_file(statistics, tmp_path / "activation_whitening.safetensors")
    lens = lens.to(torch.float64)
    lens.fold_activation_whitening(statistics["mean"], matrix, matrix.inverse())
    sae, h = SAE.load_from_disk(tmp_path), inputs(64)
    with torch.no_grad():
        f = lens.encode(h)
        torch.testing.assert_close(sae.encode(h), f, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sae.decode(f), lens.decode(f), rtol=1e-5, atol=1e-5)
    save_file(statistics | {"matrix": torch.ones(3, 3)}, tmp_path / "activation_whitening.safetensors")
    with pytest.raises(ValueError, match=r"matrix should have shape \[24, 24\], got \[3, 3\]"):
        SAE.load_from_disk(tmp_path)
