"""Plans of MISteering from their files, served from a folder: the tokens of Hugging Face under the hook."""

import pytest
import vllm_engine
from serving_cases import expected, prompts, sae_at

import sparsesteer as ss
from sparsesteer.serving import ServedSpec, SpecStore, status

files = vllm_engine.files
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]

NEW = 12
FEATURES = range(0, 60, 2)
RULES = {"amplify": 3.0, "calibrate": 40.0, "gap_fill": 12.0}
WISHES = ("amplify", "gap_fill", None, "calibrate", "amplify@0.5", "gap_fill")


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """One for each rule, of a TopK SAE read without its mask; written to files and read again."""
    folder = tmp_path_factory.mktemp("mi")
    steering = ss.MISteering(sae_at(2, ss.TopK(8)), FEATURES)
    return {
        rule: ss.SteeringPlan.load(steering.plan(rule, amount).save(folder / f"{rule}.safetensors"))
        for rule, amount in RULES.items()
    }


def test_all_rules_are_served_token_for_token(files, plans, tmp_path):
    """Gap-fill has a scale rule of its own, and so a bank, which the folder of specs asks for by itself."""
    model = files[0]
    for rule, plan in plans.items():
        SpecStore(tmp_path / "specs").add(ServedSpec(plan, "all"), rule)
    given = prompts(len(WISHES), 20, 90)
    with vllm_engine.engine(
        {"model": files[1]["model"], "sites": []}, steering={"specs": str(tmp_path / "specs")}, specs={},
        max_num_batched_tokens=64,
    ) as llm:  # fmt: skip
        for _ in range(2):  # the second time from the prefix cache
            found = vllm_engine.tokens(vllm_engine.generate(llm, given, WISHES, NEW))
            for prompt, wish, tokens in zip(given, WISHES, found, strict=True):
                plain = expected(model, prompt, None, NEW)
                if wish is None:
                    assert tokens == plain
                    continue
                rule, _, strength = wish.partition("@")
                with ss.steer(model, plans[rule], float(strength or 1)):
                    want = expected(model, prompt, None, NEW)
                assert tokens == want != plain
        assert status(llm)["unsteered_requests"] == 0
