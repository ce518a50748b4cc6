"""The engine in processes of its own, on two ranks, and compiled: the plugin arrives everywhere."""

import os

import pytest
import serving_cases
import vllm_engine
import vllm_process

from sparsesteer.serving import SpecStore

files, wanted = vllm_engine.files, vllm_engine.wanted
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),  # the server runs so too
        pytest.param(
            {"tensor_parallel_size": 2}, marks=pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="1 core")
        ),
        pytest.param({"enforce_eager": False}, marks=pytest.mark.slow),
    ],
    ids=["one rank", "two ranks", "compiled"],
)
def test_a_mixed_batch_is_token_exact(tmp_path, files, wanted, options):
    store = SpecStore(tmp_path / "specs")
    for name, spec in serving_cases.specs().items():
        store.add(spec, name)
    found = vllm_process.run(
        tmp_path, files[1], tmp_path / "specs", wanted[0], vllm_engine.WISHES, vllm_engine.NEW, **options
    )
    vllm_process.check_exact(found, wanted[1])
    assert (found["compiled"] == "NONE") == options.get("enforce_eager", True)
