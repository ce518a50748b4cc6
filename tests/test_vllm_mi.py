"""Plans of MISteering from their files, served from a folder: the tokens of Hugging Face under the hook."""

import pytest
import vllm_engine
from serving_cases import sae_at

import sparsesteer as ss

files = vllm_engine.files
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]

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
    vllm_engine.check_served(files, tmp_path / "specs", plans, [], WISHES, "all")
