"""Plans of SPARE from its file, served out of a folder: the tokens that Hugging Face generates under the hook."""

import pytest
import torch
import vllm_engine
from serving_cases import N_FEATURES, expected, prompts, sae_at

import sparsesteer as ss
from sparsesteer.serving import ServedSpec, SpecStore, status

files = vllm_engine.files
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]

NEW = 12
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
    model = files[0]
    for block, sae in spare.saes.items():
        sae.save(tmp_path / f"sae{block}")
    sites = [{"sae": str(tmp_path / f"sae{block}"), "features": 64} for block in spare.saes]
    plans = {side: spare.plan(side, alpha=4.0) for side in ("context", "memory")}
    for side, each in plans.items():
        SpecStore(tmp_path / "specs").add(ServedSpec(each, "last_prompt"), side)
    given = prompts(len(WISHES), 20, 90)
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
                side, _, strength = wish.partition("@")
                with ss.steer(model, plans[side], float(strength or 1), positions="last_prompt"):
                    want = expected(model, prompt, None, NEW)
                assert tokens == want != plain
        assert status(llm)["unsteered_requests"] == 0
