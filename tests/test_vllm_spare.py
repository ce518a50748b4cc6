"""Plans of SPARE from its file, served out of a folder: the tokens that Hugging Face generates under the hook."""

import pytest
import torch
import vllm_engine
from serving_cases import N_FEATURES, sae_at

import sparsesteer as ss

files = vllm_engine.files
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]

WISHES = ("memory", "context", None, "memory@0.5", "context", "memory")


@pytest.fixture(scope="module")
def spare(tmp_path_factory):
    """At three blocks, one of them with a TopK SAE; written to its file and read again."""
    saes = {1: sae_at(1), 2: sae_at(2, ss.TopK(8)), 3: sae_at(3, ss.ReLU())}
    generator = torch.Generator().manual_seed(5)
    mi, context, memory = ({site: torch.rand(N_FEATURES, generator=generator) for site in saes} for _ in range(3))
    fitted = ss.SPARE.from_statistics(saes, mi, context, memory, k=40)
    return ss.SPARE.load(fitted.save(tmp_path_factory.mktemp("spare") / "spare.safetensors"), saes)


def test_both_directions_are_served_token_for_token(files, spare, tmp_path):
    for block, sae in spare.saes.items():
        sae.save(tmp_path / f"sae{block}")
    sites = [{"sae": str(tmp_path / f"sae{block}"), "features": 64} for block in spare.saes]
    plans = {side: spare.plan(side, alpha=4.0) for side in ("context", "memory")}
    vllm_engine.check_served(files, tmp_path / "specs", plans, sites, WISHES, "last_prompt")
