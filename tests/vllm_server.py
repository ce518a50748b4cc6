"""``sparsesteer serve`` in a process of its own, and its HTTP."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import vllm_engine
from serving_cases import VOCABULARY
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

KEY = "secret"
ROOT = Path(__file__).resolve().parents[1]


def write_tokenizer(folder):
    words = {f"w{i}": i for i in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w2", unk_token="w0").save_pretrained(folder)


class Server:
    """A server on the tiny Llama.

    Args:
        more: options of ``sparsesteer serve``.
        engine: options of vLLM's server.
    """

    def __init__(self, files, specs_folder, log, *more, engine=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        write_tokenizer(files["model"])
        saes = [word for site in files["sites"] for word in ("--sae", site["sae"])]
        command = [
            *(sys.executable, "-c", "from sparsesteer.cli import main; main()", "serve", files["model"], *saes),
            *("--specs", str(specs_folder), "--features", "160", *more, "--", "--dtype", "float32", "--enforce-eager"),
            *("--max-model-len", "256", "--port", str(self.port), "--host", "127.0.0.1", "--api-key", KEY, *engine),
            *("--served-model-name", "tiny"),
        ]
        environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": str(ROOT)}
        self.log = log
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True
        )

    def wait(self):
        """Until it answers."""
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
        """(status, answer), which is text if it is no JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                text = answer.read().decode()
                is_json = answer.headers.get_content_type() == "application/json"
                return answer.status, json.loads(text) if is_json and text else text
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def complete(self, prompt, wish, new=vllm_engine.NEW):
        """(status, tokens or the error)."""
        code, answer = self.call("POST", "/v1/completions", _body(prompt, wish, new))
        return code, answer["choices"][0]["token_ids"] if code == 200 else answer

    def cancel(self, prompt, wish, new, after):
        """Begin a streamed completion and hang up when some of it has come."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        client.request("POST", "/v1/completions", json.dumps(_body(prompt, wish, new) | {"stream": True}), headers)
        answer = client.getresponse()
        for _ in range(2 * after):  # every piece is followed by an empty line
            answer.readline()
        client.close()
        return answer.status

    def status(self):
        """Figures of the core and the first worker."""
        code, answer = self.call("GET", "/v1/sparsesteer/status")
        assert code == 200, answer
        return answer

    def metrics(self):
        """What /metrics has of steering, by name with labels."""
        code, text = self.call("GET", "/metrics", key=None)
        assert code == 200, text
        lines = [line.split(" ") for line in text.splitlines() if line.startswith("sparsesteer:")]
        return {name.removeprefix("sparsesteer:"): float(value) for name, value in lines}

    def stop(self):
        self.process.terminate()
        self.process.wait(60)

    def kill(self):
        """Without notice; also the processes of its engine, which would stay."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _body(prompt, wish, new):
    found = {"model": "tiny", "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True,
             "return_token_ids": True}  # fmt: skip
    return found if wish is None else found | {"vllm_xargs": {"sparsesteer": wish}}
