"""The engine in processes of its own, on two ranks, and compiled: the plugin arrives everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import vllm_engine

files, wanted = vllm_engine.files, vllm_engine.wanted
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]

SCRIPT = """
import json, sys
sys.path.insert(0, "tests")
if __name__ == "__main__":
    import vllm_engine
    from sparsesteer.serving import register, remove, status
    task = json.load(open(sys.argv[1]))
    with vllm_engine.engine(task["files"], **task["options"]) as llm:
        outputs = vllm_engine.tokens(vllm_engine.generate(llm, task["prompts"], task["wishes"], task["new"]))
        unknown = vllm_engine.refusal(llm, "nobody")
        again = vllm_engine.tokens(vllm_engine.generate(llm, task["prompts"], task["wishes"], task["new"]))
        found = {"outputs": outputs, "again": again, "unknown": unknown, "status": status(llm)}
        found["compiled"] = llm.llm_engine.vllm_config.compilation_config.mode.name
    json.dump(found, open(sys.argv[2], "w"))
"""


def run(folder, files, wanted, **options):
    """The batch in an engine of another process; nothing of this process's wrappers is there."""

    script, task, result = folder / "run.py", folder / "task.json", folder / "result.json"
    script.write_text(SCRIPT)
    task.write_text(
        json.dumps(
            {
                "files": files[1],
                "options": options,
                "prompts": wanted[0],
                "wishes": vllm_engine.WISHES,
                "new": vllm_engine.NEW,
            }
        )
    )
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": str(root)}
    ranks = options.get("tensor_parallel_size", 1)
    if ranks > 1:  # vLLM would look for a NUMA node for each
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, sorted(os.sched_getaffinity(0))[:ranks]))
    command = [sys.executable, str(script), str(task), str(result)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=400)
    assert result.is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(result.read_text())


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
    found = run(tmp_path, files, wanted, **options)
    assert found["outputs"] == wanted[1] == found["again"]
    assert "no spec 'nobody'" in found["unknown"]
    assert found["status"]["unsteered_requests"] == 0 and found["status"]["core"]["requests"] == 0
    assert (found["compiled"] == "NONE") == options.get("enforce_eager", True)
