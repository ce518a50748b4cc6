"""Neuronpedia's ids and addresses: read without network, found in sae-lens's list."""

import sys
from types import SimpleNamespace

import pytest

from sparsesteer import SAE, NeuronpediaFeature, neuronpedia

READ = {
    "gpt2-small/8-res-jb/123": ("gpt2-small", "res-jb", 8, 123),
    "https://www.neuronpedia.org/gpt2-small/8-res-jb/123": ("gpt2-small", "res-jb", 8, 123),
    "http://neuronpedia.org/gpt2-small/8-res-jb/123/": ("gpt2-small", "res-jb", 8, 123),
    " www.neuronpedia.org/gpt2-small/8-res-jb/123 ": ("gpt2-small", "res-jb", 8, 123),
    "https://www.neuronpedia.org/gpt2-small/8-res-jb/0?embed=true&plots=false": ("gpt2-small", "res-jb", 8, 0),
    "https://neuronpedia.org/api/feature/gemma-2-2b/20-gemmascope-res-16k/10956": (
        "gemma-2-2b", "gemmascope-res-16k", 20, 10956,
    ),
    "llama3.1-8b/0-llamascope-res-32k/5#top": ("llama3.1-8b", "llamascope-res-32k", 0, 5),
    "pythia-70m-deduped/e-att-sm/1": ("pythia-70m-deduped", "e-att-sm", None, 1),
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_reading(text):
    feature = NeuronpediaFeature.parse(text)
    assert (feature.model, feature.sae_set, feature.layer, feature.feature) == READ[text]
    assert NeuronpediaFeature.parse(str(feature)) == feature
    assert str(feature) == f"{feature.sae}/{feature.feature}" and neuronpedia.is_id(text)


NOT_FEATURES = [
    "", "music", "and/or", "gpt2-small/8-res-jb", "gpt2-small/8-res-jb/", "gpt2-small/8-res-jb/-1",
    "gpt2-small/8-res-jb/1.5", "gpt2-small/8-res-jb/١", "gpt2-small/8-res-jb/12/3",
    "https://example.org/gpt2-small/8-res-jb/123", "https://neuronpedia.org.example/gpt2-small/8-res-jb/123",
    "ftp://neuronpedia.org/gpt2-small/8-res-jb/123", "https://www.neuronpedia.org/gpt2-small/8-res-jb",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_FEATURES)
def test_what_is_no_feature(text):
    with pytest.raises(ValueError, match="is no feature of Neuronpedia; one reads gpt2-small/8-res-jb/123"):
        NeuronpediaFeature.parse(text)


LIST = """
gpt2-small-res-jb:
  saes:
  - {id: blocks.8.hook_resid_pre, neuronpedia: gpt2-small/8-res-jb}
  - {id: blocks.9.hook_resid_pre, neuronpedia: null}
  - {id: blocks.10.hook_resid_pre}
"""


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A stand-in for the installed sae-lens with a list of three SAEs."""
    (tmp_path / "pretrained_saes.yaml").write_text(LIST)
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(neuronpedia.util, "find_spec", lambda name: package)
    neuronpedia._published_saes.cache_clear()
    yield
    neuronpedia._published_saes.cache_clear()


def test_the_list_of_sae_lens_says_where_to_load_it(listed):
    assert NeuronpediaFeature.parse("gpt2-small/8-res-jb/123").in_sae_lens() == (
        "gpt2-small-res-jb",
        "blocks.8.hook_resid_pre",
    )
    with pytest.raises(ValueError, match="does not have Neuronpedia's SAE gpt2-small/9-res-jb"):
        NeuronpediaFeature.parse("gpt2-small/9-res-jb/123").in_sae_lens()


def test_without_sae_lens_the_package_is_named(monkeypatch):
    neuronpedia._published_saes.cache_clear()
    monkeypatch.setattr(neuronpedia.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install sparsesteer\[lens\]"):
        NeuronpediaFeature.parse("gpt2-small/8-res-jb/123").in_sae_lens()


def test_the_list_of_the_installed_sae_lens():
    if neuronpedia.util.find_spec("sae_lens") is None:
        pytest.skip("sae-lens is not installed")
    neuronpedia._published_saes.cache_clear()
    before = set(sys.modules)
    gpt2 = NeuronpediaFeature.parse("gpt2-small/8-res-jb/123").in_sae_lens()
    # Neuronpedia counts the stream after the last block as one more layer
    last = NeuronpediaFeature.parse("gpt2-small/12-res-jb/0").in_sae_lens()
    assert gpt2 == ("gpt2-small-res-jb", "blocks.8.hook_resid_pre")
    assert last == ("gpt2-small-res-jb", "blocks.11.hook_resid_post")
    assert not any(name.startswith("sae_lens") for name in set(sys.modules) - before)


def test_the_id_in_a_folder_is_the_saes(tmp_path):
    from tiny_model import write_sae

    write_sae(tmp_path, metadata={"neuronpedia_id": "tiny/1-res"})
    sae = SAE.load_from_disk(tmp_path)
    assert sae.site.neuronpedia_id == "tiny/1-res"
    assert NeuronpediaFeature.parse("tiny/1-res/4").in_sae(sae) == 4
