"""Swaps of an AlignSAE, served: the tokens that Hugging Face generates under the hook."""

import pytest
import vllm_engine
from serving_cases import sae_at

import sparsesteer as ss
from sparsesteer.serving import ServedSpec

files = vllm_engine.files
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]

BLOCK = 2
CONCEPTS = ("date", "city", "school")
ALPHAS = {"slot": 30.0, "decoder_column": 4.0, "mean_diff": 4.0}
WISHES = ("slot", "slot@0.5", None, "mean_diff@0.5", "decoder_column", "slot")


def test_swaps_are_served_token_for_token(files, tmp_path):
    folder = ss.AlignSAE(sae_at(BLOCK, ss.Slots(3, ss.ReLU())), CONCEPTS).save(tmp_path / "aligned")
    aligned = ss.AlignSAE.load(folder)
    plans = {form: aligned.plan("date", "school", alpha, form) for form, alpha in ALPHAS.items()}
    with pytest.raises(ValueError, match="reconstruct plans need their whole SAE and are not served"):
        ServedSpec(aligned.plan("date", "school", form="latent_decode"), "last_prompt")
    sites = [{"sae": str(folder), "features": 8}]
    vllm_engine.check_served(files, tmp_path / "specs", plans, sites, WISHES, "last_prompt")
