"""Minutes of 200 clients of one server: nothing is lost, nothing goes unsteered, and all room is free at the end."""

import collections
import random
import threading
import time

import pytest
import vllm_engine
from serving_cases import agreed, prompts, saes
from vllm_server import Server

import sparsesteer as ss
from sparsesteer.serving import ServedSpec, SpecStore, spec_files

files = vllm_engine.files
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SECONDS, CLIENTS, SPECS, PASSING, SLOTS, NEW = 180, 200, 50, 4, 12, 12
PROMPTS = prompts(3, 8, 40, seed=5)
STRENGTHS = ("", "@0.5")


def spec_number(i):
    """Each with other features, edits and positions."""
    block = 1 + i % 2
    features = [(7 * i + j) % 256 for j in range(1 + i % 9)]
    edits = [
        ss.Edit.set(dict.fromkeys(features, 8.0 + i)),
        ss.Edit.add(dict.fromkeys(features, 5.0)),
        ss.Edit.scale({(11 * i + j) % 256: -4.0 for j in range(60)}),
        ss.Edit.floor(dict.fromkeys(features, 9.0)),
    ]
    return ServedSpec(
        saes()[block].plan(edits[i % 4]), ("all", "generated", "prompt", "last_prompt", slice(2, None))[i % 5]
    )


class Soak:
    """What clients do at random, and what came of it."""

    def __init__(self, server):
        self.server = server
        self.end = time.monotonic() + SECONDS
        self.answers = collections.defaultdict(set)  # by prompt and wish
        self.outcomes = collections.Counter()
        self.most_waiting = 0
        self.errors = []

    def run(self, passing):
        jobs = [threading.Thread(target=self._guarded, args=(self._client, i)) for i in range(CLIENTS)]
        jobs += [threading.Thread(target=self._guarded, args=(self._passing, *each)) for each in passing.items()]
        jobs.append(threading.Thread(target=self._guarded, args=(self._watch,)))
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    def _guarded(self, what, *args):
        while time.monotonic() < self.end and not self.errors:
            try:
                what(*args)
            except Exception as error:
                self.errors.append(repr(error))

    def _client(self, number):
        chance = random.Random(f"{number} {time.monotonic()}")
        prompt, deed = chance.randrange(len(PROMPTS)), chance.random()
        wish = f"s{chance.randrange(SPECS)}{chance.choice(STRENGTHS)}"
        if deed < 0.08:
            code, answer = self.server.complete(PROMPTS[prompt], f"nobody{number}", NEW)
            assert code == 400 and "no spec" in answer, (code, answer)
            self.outcomes["refused"] += 1
        elif deed < 0.16:
            assert self.server.cancel(PROMPTS[prompt], wish, 200, chance.randint(0, 4)) == 200
            self.outcomes["cancelled"] += 1
        else:
            self._ask(prompt, None if deed < 0.28 else wish)

    def _ask(self, prompt, wish):
        code, answer = self.server.complete(PROMPTS[prompt], wish, NEW)
        assert code == 200, (code, answer)
        self.answers[prompt, wish].add(tuple(answer))
        self.outcomes["answered"] += 1

    def _passing(self, name, spec):
        """A spec that comes, is used, and goes when nobody uses it any more."""
        code, answer = self.server.call("POST", f"/v1/sparsesteer/specs?name={name}", spec_files.to_bytes(spec))
        assert code == 200, answer
        self.server.cancel(PROMPTS[0], name, 200, 1)
        self._ask(1, name)
        while (code := self.server.call("DELETE", f"/v1/sparsesteer/specs/{name}")[0]) == 409:
            time.sleep(0.05)
        assert code == 200, code
        assert self.server.complete(PROMPTS[2], name, NEW)[0] == 400
        self.outcomes["passed"] += 1

    def _watch(self):
        core = self.server.status()["core"]
        self.most_waiting = max(self.most_waiting, core["waiting"])
        time.sleep(0.5)


def test_a_server_under_load(files, tmp_path):
    known = {f"s{i}": spec_number(i) for i in range(SPECS)}
    passing = {f"p{i}": spec_number(SPECS + i) for i in range(PASSING)}
    for name, spec in known.items():
        SpecStore(tmp_path / "specs").add(spec, name)
    options = ("--allow-registration", "--slots", str(SLOTS))
    server = Server(files[1], tmp_path / "specs", tmp_path / "log", *options, engine=("--max-num-seqs", "64")).wait()
    try:
        soak = Soak(server)
        soak.run(passing)
        assert not soak.errors, soak.errors[:5]
        server.complete(PROMPTS[0], None, 1)  # a step in which the workers hear of what has ended
        status, metrics = server.status(), server.metrics()
        log = (tmp_path / "log").read_text()
    finally:
        server.stop()
    print(dict(soak.outcomes), "most waiting:", soak.most_waiting, status)
    check_answers(files[0], known | passing, soak.answers)
    core = status["core"]
    assert (status["in_use"], core["in_use"], core["requests"], core["waiting"]) == (0, 0, 0, 0)
    assert status["unsteered_requests"] == 0 and core["specs"] == SPECS
    assert status["evictions"] > 0 and soak.most_waiting > 0 and status["resident"] <= SLOTS
    assert min(soak.outcomes[each] for each in ("answered", "refused", "cancelled", "passed")) > 0
    assert metrics['refused_requests_total{reason="unknown"}'] == soak.outcomes["refused"] + soak.outcomes["passed"]
    assert "Traceback" not in log, log[log.index("Traceback") :][:3000]


def check_answers(model, known, answers):
    """One answer to each request, whenever it came: that of Hugging Face; and it shows that it was steered."""
    differs = []
    for (prompt, wish), given in answers.items():
        assert len(given) == 1, (prompt, wish, given)
        answer = list(*given)
        assert agreed(model, known, PROMPTS[prompt], wish, answer) == answer, (prompt, wish)
        if wish is not None:
            differs.append(agreed(model, known, PROMPTS[prompt], None, answer) != answer)
    assert sum(differs) > 0.8 * len(differs)
