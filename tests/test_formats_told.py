"""How a format is told, and what the caller may add: site and k, files and folders, links, caches, refusals."""

import os
import shutil

import cases_lens
import cases_owners
import pytest
import torch
from format_case import D, F, inputs

from sparsesteer import SAE, Edit, Site
from sparsesteer.cli.models import load_sae

pytestmark = pytest.mark.usefixtures("one_thread")
LENS, OWNERS = cases_lens.CASES, cases_owners.CASES


WEIGHTS = {
    "gemma scope res": (LENS, "params.npz"),
    "gemma scope 2": (LENS, "params.safetensors"),
    "llama scope": (LENS, "checkpoints/final.safetensors"),
    "sparsify": (OWNERS, "sae.safetensors"),
    "BatchTopKSAE": (OWNERS, "ae.pt"),
    "transcoder": (OWNERS, "sae_weights.safetensors"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_weights_in_a_folder_mean_the_folder(name, tmp_path):
    cases, file = WEIGHTS[name]
    case = cases[name](tmp_path)
    whole, part = SAE.load_from_disk(case.path), SAE.load_from_disk(case.path / file)
    assert part.digest == whole.digest
    assert (part.site.hook_name, part.site.model_name) == (whole.site.hook_name, whole.site.model_name)
    assert load_sae(str(case.path / file), "any").digest == whole.digest


@pytest.mark.parametrize("name", ["goodfire", "qwen scope", "gemma scope res"])
def test_a_relative_path_is_as_good(name, tmp_path, monkeypatch):
    case = LENS[name](tmp_path)
    monkeypatch.chdir(case.path.parent)
    sae = SAE.load_from_disk(case.path.name)
    assert sae.site == Site(case.site.model_name, case.site.hook_name, None, case.path.name)


def test_k_of_qwen_scope_is_told_by_its_repository_or_the_caller(tmp_path):
    case = LENS["qwen scope"](tmp_path)
    assert SAE.load_from_disk(case.path).activation.k == SAE.load_from_disk(case.path, k=9).activation.k == 9
    with pytest.raises(ValueError, match=r"layer5.sae.pt: k is 9, but k=50 was given; leave it out"):
        SAE.load_from_disk(case.path, k=50)
    alone = tmp_path / "layer5.sae.pt"
    shutil.copy(case.path, alone)
    with pytest.raises(ValueError, match=r"does not tell its k; give it: load_from_disk\(path, k=...\)"):
        SAE.load_from_disk(alone)
    sae = SAE.load_from_disk(alone, k=50, site=Site("Qwen/Qwen3-8B-Base"))
    assert sae.activation.k == 50 and sae.site == Site(
        "Qwen/Qwen3-8B-Base", "blocks.5.hook_resid_post", None, str(alone)
    )


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "3"])
def test_a_k_that_is_none_is_refused(k, tmp_path):
    case = LENS["qwen scope"](tmp_path)
    shutil.copy(case.path, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="k should be a positive integer"):
        SAE.load_from_disk(tmp_path / "a.pt", k=k)


@pytest.mark.parametrize("name", ["sparsify", "AutoEncoderTopK"])
def test_a_k_that_the_file_tells_may_be_repeated_only(name, tmp_path):
    case = OWNERS[name](tmp_path)
    assert SAE.load_from_disk(case.path, k=7).activation.k == 7
    with pytest.raises(ValueError, match="k is 7, but k=8 was given"):
        SAE.load_from_disk(case.path, k=8)


@pytest.mark.parametrize("name", ["gemma scope res", "goodfire", "llama scope"])
def test_k_is_for_topk(name, tmp_path):
    with pytest.raises(ValueError, match="k=8 was given, but this SAE is no TopK SAE; leave it out"):
        SAE.load_from_disk(LENS[name](tmp_path).path, k=8)


def test_a_site_that_contradicts_is_refused_and_one_that_agrees_is_not(tmp_path):
    case = LENS["gemma scope res"](tmp_path)
    assert SAE.load_from_disk(case.path, site=Site(hook_name="blocks.20.hook_resid_post")).site == case.site
    for given in (Site("google/gemma-2-9b"), Site(hook_name="model.layers.20")):
        with pytest.raises(ValueError, match="by its files or path, but .* was given; to use another, set sae.site"):
            SAE.load_from_disk(case.path, site=given)


def test_a_file_without_its_repository_takes_the_site_that_is_given(tmp_path):
    case = LENS["gemma scope transcoder"](tmp_path)
    shutil.copy(case.path / "params.npz", tmp_path / "mine.npz")
    assert SAE.load_from_disk(tmp_path / "mine.npz").site == Site(source=str(tmp_path / "mine.npz"))
    site = Site("google/gemma-2-2b", "layers.20.pre_feedforward_layernorm", "layers.20.post_feedforward_layernorm")
    sae = SAE.load_from_disk(tmp_path / "mine.npz", site=site)
    assert sae.transcoder and sae.site.hook_name_out == site.hook_name_out
    assert sae.plan(Edit()).site == sae.site


PLACES = {
    "gemma-scope-9b-it-res/layer_9/width_16k/average_l0_88": ("google/gemma-2-9b-it", "blocks.9.hook_resid_post"),
    "gemma-scope-27b-pt-res/layer_10/width_131k/average_l0_106": ("google/gemma-2-27b", "blocks.10.hook_resid_post"),
    "gemma-scope-9b-pt-att/layer_0/width_16k/average_l0_12": ("google/gemma-2-9b", "blocks.0.attn.hook_z"),
    "gemma-scope-2b-pt-mlp/elsewhere": ("google/gemma-2-2b", None),
    "my-saes/layer_3/width_16k/average_l0_12": (None, None),
    "models--google--gemma-scope-2b-pt-res/snapshots/0f1e/layer_20/width_16k/average_l0_71": (
        "google/gemma-2-2b", "blocks.20.hook_resid_post"),
}  # fmt: skip


@pytest.mark.parametrize("folder, told", PLACES.items(), ids=PLACES)
def test_gemma_scope_is_told_by_its_folders(folder, told, tmp_path):
    case = LENS["gemma scope res"](tmp_path / "made")
    place = tmp_path / folder
    shutil.copytree(case.path, place)
    sae = SAE.load_from_disk(place)
    assert (sae.site.model_name, sae.site.hook_name) == told


MODULES = {
    "layers.10": ("blocks.10.hook_resid_post",),
    "h.3": ("blocks.3.hook_resid_post",),
    "gpt_neox.layers.3": ("blocks.3.hook_resid_post",),
    "layers.3.attention": ("layers.3.attention",),
    "embed_tokens": ("embed_tokens",),
    "my_sae": (None,),
}


@pytest.mark.parametrize("folder, site", MODULES.items(), ids=MODULES)
def test_sparsify_is_told_by_its_folder(folder, site, tmp_path):
    sae = SAE.load_from_disk(cases_owners.sparsify(folder, site, num_latents=F)(tmp_path).path)
    assert sae.site.hook_name == site[0] and sae.site.model_name == "meta-llama/Meta-Llama-3-8B"


TRANSCODED = {
    "layers.3": ("blocks.3.hook_resid_pre", "blocks.3.hook_resid_post"),
    "layers.3.mlp": ("blocks.3.mlp.hook_in", "layers.3.mlp"),
    "layers.3.attention": (None, "layers.3.attention"),
}


@pytest.mark.parametrize("folder, site", TRANSCODED.items(), ids=TRANSCODED)
def test_transcoders_of_sparsify_are_told_by_their_folder(folder, site, tmp_path):
    sae = SAE.load_from_disk(cases_owners.sparsify(folder, site, num_latents=F, transcode=True)(tmp_path).path)
    assert (sae.site.hook_name, sae.site.hook_name_out) == site and sae.transcoder


SUBMODULES = {
    None: "blocks.3.hook_resid_post",
    "resid_pre_layer_3": "blocks.3.hook_resid_pre",
    "mlp_layer3": "blocks.3.hook_mlp_out",
    "attn_out_layer_3": "blocks.3.hook_attn_out",
    "resid_post_layer_4": None,
    "something": None,
}


@pytest.mark.parametrize("name, hook", SUBMODULES.items(), ids=map(str, SUBMODULES))
def test_dictionaries_are_told_by_their_submodule(name, hook, tmp_path):
    case = cases_owners.dictionary_learning("AutoEncoderNew", submodule_name=name)(tmp_path)
    assert SAE.load_from_disk(case.path).site.hook_name == hook


@pytest.mark.parametrize("name", ["gemma scope 2", "transcoder", "BatchTopKSAE", "llama scope"])
def test_links_out_of_the_folder_are_refused(name, tmp_path):
    case = (LENS | OWNERS)[name](tmp_path / "made")
    file = next(path for path in case.path.rglob("*") if path.suffix in (".safetensors", ".pt", ".npz"))
    elsewhere = tmp_path / f"elsewhere{file.suffix}"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(ValueError, match=r"is a link to .*elsewhere\S+, outside of its folder"):
        SAE.load_from_disk(case.path)
    assert SAE.load_from_disk(file).d_in == D  # a file that the caller names himself is his to choose


def test_a_folder_that_is_itself_a_link_and_links_inside_it_are_fine(tmp_path):
    case = LENS["gemma scope 2"](tmp_path / "made")
    (case.path / "params.safetensors").rename(case.path / "real.safetensors")
    (case.path / "params.safetensors").symlink_to("real.safetensors")
    (tmp_path / "link").symlink_to(case.path)
    assert SAE.load_from_disk(tmp_path / "link").d_in == D


def test_the_cache_of_hugging_face_is_read(tmp_path):
    """There every file is a link into the blobs of its repository."""
    case = LENS["gemma scope res"](tmp_path / "made")
    repository = tmp_path / "models--google--gemma-scope-2b-pt-res"
    place = repository / "snapshots" / "0f1e" / "layer_20" / "width_16k" / "average_l0_71"
    place.mkdir(parents=True)
    (repository / "blobs").mkdir()
    shutil.copy(case.path / "params.npz", repository / "blobs" / "abc")
    (place / "params.npz").symlink_to("../../../../../blobs/abc")
    sae = SAE.load_from_disk(place)
    assert sae.site.hook_name == "blocks.20.hook_resid_post"
    torch.testing.assert_close(sae.encode(inputs(4)), SAE.load_from_disk(case.path).encode(inputs(4)))


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="neither a folder nor a regular file"):
        SAE.load_from_disk(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        SAE.load_from_disk(tmp_path / "b.npz")


def test_a_configuration_of_any_length_is_not_read(tmp_path):
    case = OWNERS["transcoder"](tmp_path)
    with open(case.path / "cfg.json", "a") as file:
        file.truncate(17 << 20)
    with pytest.raises(ValueError, match=r"cfg.json has 17825792 bytes, too many for a configuration"):
        SAE.load_from_disk(case.path)


def test_what_is_not_understood_is_said(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt is not a known SAE: the file holds weight; supported are: cfg.json"):
        SAE.load_from_disk(tmp_path / "x.pt")
    for i in range(20):
        (tmp_path / f"{i}.txt").touch()
    with pytest.raises(ValueError, match=r"the folder holds 0.txt, 1.txt, .* and 9 more; supported are"):
        SAE.load_from_disk(tmp_path)
