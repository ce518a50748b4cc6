"""``sparsesteer serve``: vLLM's OpenAI server with specs registered while it runs."""

import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import vllm_engine
from serving_cases import VOCABULARY, specs
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsesteer.serving import SpecStore, spec_files

files, wanted = vllm_engine.files, vllm_engine.wanted
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]
KEY = "secret"
ROOT = Path(__file__).resolve().parents[1]


def write_tokenizer(folder):
    words = {f"w{i}": i for i in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w2", unk_token="w0").save_pretrained(folder)


class Server:
    """A server in a process of its own, and its HTTP."""

    def __init__(self, files, specs_folder, log, *more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        write_tokenizer(files["model"])
        saes = [word for site in files["sites"] for word in ("--sae", site["sae"])]
        command = [sys.executable, "-c", "from sparsesteer.cli import main; main()", "serve", files["model"], *saes]
        command += [
            "--specs",
            str(specs_folder),
            "--features",
            "160",
            *more,
            "--",
            "--dtype",
            "float32",
            "--enforce-eager",
        ]
        command += ["--max-model-len", "256", "--port", str(self.port), "--host", "127.0.0.1", "--api-key", KEY]
        environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": str(ROOT)}
        self.log = log
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT
        )

    def wait(self):
        for _ in range(600):
            try:
                if self.call("GET", "/health")[0] == 200:
                    return self
            except OSError:
                pass
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def call(self, method, path, body=None, key=KEY):
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def complete(self, prompt, wish, new=vllm_engine.NEW):
        body = {"model": "m", "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True,
                "return_token_ids": True}  # fmt: skip
        body["model"] = self.call("GET", "/v1/models")[1]["data"][0]["id"]
        if wish is not None:
            body["vllm_xargs"] = {"sparsesteer": wish}
        code, answer = self.call("POST", "/v1/completions", body)
        return code, answer["choices"][0]["token_ids"] if code == 200 else answer

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which an operator has put one spec."""
    found = tmp_path_factory.mktemp("specs")
    SpecStore(found).add(specs()["set"], "set")
    return found


@pytest.fixture(scope="module")
def server(files, folder, tmp_path_factory):
    started = Server(files[1], folder, tmp_path_factory.mktemp("log") / "log", "--allow-registration").wait()
    yield started
    started.stop()


def test_registered_specs_steer_at_once_and_all_requests_are_token_exact(server, wanted):
    for name, spec in specs().items():
        code, answer = server.call("POST", f"/v1/sparsesteer/specs?name={name}", spec_files.to_bytes(spec))
        assert (code, answer) == (200, {"id": spec.id, "name": name})
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(server.complete, wanted[0], vllm_engine.WISHES))
    assert [code for code, _ in answers] == [200] * len(answers)
    assert [tokens for _, tokens in answers] == wanted[1]
    code, answer = server.call("GET", "/v1/sparsesteer/specs")
    assert answer == {"specs": {spec.id: [name] for name, spec in specs().items()}}
    code, answer = server.call("GET", "/v1/sparsesteer/status")
    assert answer["unsteered_requests"] == 0 and answer["core"]["requests"] == 0


@pytest.mark.parametrize("wish", ["nobody", "set@", "set@1e9", 3, ["set"]], ids=str)
def test_a_bad_wish_costs_its_request_alone(server, wanted, wish):
    code, answer = server.complete(wanted[0][1], wish)
    assert code == 400 and "sparsesteer" in answer
    assert server.complete(wanted[0][1], "set") == (200, wanted[1][1])


@pytest.mark.parametrize(
    ("body", "code"), [(b"", 400), (b"\x80\x04K\x01." * 9, 400), (b"x" * 1000, 400)], ids=["empty", "pickle", "noise"]
)
def test_what_is_no_spec_is_refused(server, body, code):
    assert server.call("POST", "/v1/sparsesteer/specs?name=bad", body)[0] == code


def test_names_and_keys_are_checked(server):
    data = spec_files.to_bytes(specs()["set"])
    assert server.call("POST", "/v1/sparsesteer/specs?name=../../etc", data)[0] == 400
    assert server.call("POST", "/v1/sparsesteer/specs?name=x", data, key=None)[0] == 401
    assert server.call("DELETE", "/v1/sparsesteer/specs/nobody")[0] == 404


def test_a_spec_for_a_site_that_was_not_declared_is_refused(server):
    from serving_cases import sae_at

    import sparsesteer as ss
    from sparsesteer.serving import ServedSpec

    elsewhere = ServedSpec(sae_at(0).plan(ss.Edit.set({1: 1.0})))
    code, answer = server.call("POST", "/v1/sparsesteer/specs", spec_files.to_bytes(elsewhere))
    assert code == 400 and "no site was declared after block 0" in answer


def test_a_killed_server_has_its_specs_again_and_lets_nobody_change_them_unasked(
    server, files, folder, wanted, tmp_path
):
    assert server.call("DELETE", "/v1/sparsesteer/specs/last")[0] == 200
    server.process.kill()
    server.process.wait()
    again = Server(files[1], folder, tmp_path / "log").wait()
    try:
        assert again.complete(wanted[0][1], "set") == (200, wanted[1][1])
        assert again.complete(wanted[0][1], "last")[0] == 400
        code, answer = again.call("POST", "/v1/sparsesteer/specs?name=x", spec_files.to_bytes(specs()["last"]))
        assert code == 403 and "--allow-registration" in answer
    finally:
        again.stop()
