"""How soon a registered spec can be used: ``PYTHONPATH=. .venv-vllm/bin/python tests/serving_latency.py``.

Registers specs with a server of the tiny Llama and asks for one token by each at once.
"""

import statistics
import tempfile
import time
from pathlib import Path

import serving_cases
from vllm_server import Server

import sparsesteer as ss
from sparsesteer.serving import ServedSpec, spec_files

COUNT = 50


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        serving_cases.tiny_llama().save_pretrained(folder / "model")
        files = {"model": str(folder / "model"), "sites": serving_cases.write_saes(folder)}
        server = Server(files, folder / "specs", folder / "log", "--allow-registration").wait()
        try:
            measure(server)
        finally:
            server.stop()


def measure(server: Server) -> None:
    sae, prompt = serving_cases.saes()[1], [5, 6, 7]
    server.complete(prompt, None, 1)
    times: dict[str, list[float]] = {"registered": [], "first answer steered by it": [], "answer unsteered": []}
    for i in range(COUNT):
        data = spec_files.to_bytes(ServedSpec(sae.plan(ss.Edit.set({j: 5.0 + i for j in range(8)}))))
        began = time.perf_counter()
        code, answer = server.call("POST", f"/v1/sparsesteer/specs?name=s{i}", data)
        registered = time.perf_counter()
        assert code == 200, answer
        assert server.complete(prompt, f"s{i}", 1)[0] == 200
        steered = time.perf_counter()
        server.complete(prompt, None, 1)
        times["registered"].append(registered - began)
        times["first answer steered by it"].append(steered - registered)
        times["answer unsteered"].append(time.perf_counter() - steered)
    for what, seconds in times.items():
        ms = sorted(1000 * each for each in seconds)
        print(f"{what}: median {statistics.median(ms):.1f} ms, 95 % within {ms[int(0.95 * COUNT)]:.1f} ms")


if __name__ == "__main__":
    main()
