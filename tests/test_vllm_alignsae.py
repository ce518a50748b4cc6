"""Swaps of an AlignSAE, served: the tokens that Hugging Face generates under the hook."""

import pytest
import vllm_engine
from serving_cases import expected, prompts, sae_at

import sparsesteer as ss
from sparsesteer.serving import ServedSpec, SpecStore, status

files = vllm_engine.files
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]

BLOCK, NEW = 2, 12
CONCEPTS = ("date", "city", "school")
ALPHAS = {"slot": 30.0, "decoder_column": 4.0, "mean_diff": 4.0}
WISHES = ("slot", "slot@0.5", None, "mean_diff@0.5", "decoder_column", "slot")


def test_swaps_are_served_token_for_token(files, tmp_path):
    model = files[0]
    folder = ss.AlignSAE(sae_at(BLOCK, ss.Slots(3, ss.ReLU())), CONCEPTS).save(tmp_path / "aligned")
    aligned = ss.AlignSAE.load(folder)
    plans = {form: aligned.plan("date", "school", alpha, form) for form, alpha in ALPHAS.items()}
    for form, plan in plans.items():
        SpecStore(tmp_path / "specs").add(ServedSpec(plan, "last_prompt"), form)
    with pytest.raises(ValueError, match="reconstruct plans need their whole SAE and are not served"):
        ServedSpec(aligned.plan("date", "school", form="latent_decode"), "last_prompt")
    given = prompts(len(WISHES), 20, 90)
    sites = [{"sae": str(folder), "features": 8}]
    with vllm_engine.engine(
        {"model": files[1]["model"], "sites": sites}, steering={"specs": str(tmp_path / "specs")}, specs={},
        max_num_batched_tokens=64,
    ) as llm:  # fmt: skip
        for _ in range(2):  # the second time from the prefix cache
            found = vllm_engine.tokens(vllm_engine.generate(llm, given, WISHES, NEW))
            for prompt, wish, tokens in zip(given, WISHES, found, strict=True):
                plain = expected(model, prompt, None, NEW)
                if wish is None:
                    assert tokens == plain
                    continue
                form, _, strength = wish.partition("@")
                with ss.steer(model, plans[form], float(strength or 1), positions="last_prompt"):
                    want = expected(model, prompt, None, NEW)
                assert tokens == want != plain
        assert status(llm)["unsteered_requests"] == 0
