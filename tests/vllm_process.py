"""A batch in an engine of another process, where nothing of this process's wrappers is."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
sys.path.insert(0, "tests")
if __name__ == "__main__":
    import vllm_engine
    from sparsesteer.serving import status
    task = json.load(open(sys.argv[1]))
    with vllm_engine.engine(task["files"], specs={}, steering={"specs": task["specs"]}, **task["options"]) as llm:
        outputs = vllm_engine.tokens(vllm_engine.generate(llm, task["prompts"], task["wishes"], task["new"]))
        unknown = vllm_engine.refusal(llm, "nobody")
        again = vllm_engine.tokens(vllm_engine.generate(llm, task["prompts"], task["wishes"], task["new"]))
        found = {"outputs": outputs, "again": again, "unknown": unknown, "status": status(llm)}
        found["compiled"] = llm.llm_engine.vllm_config.compilation_config.mode.name
    json.dump(found, open(sys.argv[2], "w"))
"""
ROOT = Path(__file__).resolve().parents[1]


def run(folder, files, specs_folder, prompts, wishes, new, **options):
    """What the engine answers, twice, and its figures; the specs are those of a folder."""
    script, task, result = folder / "run.py", folder / "task.json", folder / "result.json"
    script.write_text(SCRIPT)
    task.write_text(
        json.dumps(
            {
                "files": files,
                "specs": str(specs_folder),
                "options": options,
                "prompts": prompts,
                "wishes": wishes,
                "new": new,
            }
        )
    )
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": str(ROOT)}
    ranks = options.get("tensor_parallel_size", 1)
    if ranks > 1:  # vLLM would look for a NUMA node for each
        cores = sorted(os.sched_getaffinity(0))
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(cores[rank % len(cores)]) for rank in range(ranks))
    command = [sys.executable, str(script), str(task), str(result)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert result.is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(result.read_text())


def check_exact(found, expected):
    """Both rounds are right, a bad wish was refused, and nothing is left in use."""
    assert found["outputs"] == expected == found["again"]
    assert "no spec 'nobody'" in found["unknown"]
    assert found["status"]["unsteered_requests"] == 0 and found["status"]["core"]["requests"] == 0
