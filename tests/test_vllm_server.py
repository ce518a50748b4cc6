"""``sparsesteer serve``: vLLM's OpenAI server with specs registered while it runs."""

import concurrent.futures

import pytest
import vllm_engine
from serving_cases import specs
from vllm_server import Server

from sparsesteer.serving import SpecStore, spec_files

files, wanted = vllm_engine.files, vllm_engine.wanted
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("one_thread")]


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


BAD = [("nobody", "unknown"), ("set@", "malformed"), ("set@1e9", "strength"), (3, "malformed"), (["set"], "malformed")]


@pytest.mark.parametrize(("wish", "reason"), BAD, ids=str)
def test_a_bad_wish_costs_its_request_alone(server, wanted, wish, reason):
    """One 400, one more in one counter, and all that runs beside it goes on."""
    before = server.metrics()
    jobs = [*zip(wanted[0][:4], vllm_engine.WISHES[:4], strict=True), (wanted[0][1], wish)]
    with concurrent.futures.ThreadPoolExecutor(5) as clients:
        *answers, (code, answer) = clients.map(lambda job: server.complete(*job), jobs)
    assert code == 400 and "sparsesteer" in answer
    assert answers == [(200, tokens) for tokens in wanted[1][:4]]
    key, after = f'refused_requests_total{{reason="{reason}"}}', server.metrics()
    assert after[key] == before.get(key, 0) + 1
    for name in after:
        if "refused" in name and name != key and "created" not in name:
            assert after[name] == before[name]
    assert "Traceback" not in server.log.read_text()


def test_figures_at_metrics_are_those_of_the_status(server, wanted):
    before = server.metrics()
    for wish in ("set", "gated", None):
        server.complete(wanted[0][1], wish)
    after, status = server.metrics(), server.status()
    assert after["steered_requests_total"] == before["steered_requests_total"] + 2
    assert after["steered_tokens"] == status["steered_tokens"] > before["steered_tokens"]
    assert after["specs"] == len(specs()) and after["specs_resident"] == status["resident"]
    assert after["spec_loads"] == status["loads"] > 0 and after["spec_evictions"] == status["evictions"] == 0
    assert after["requests_live"] == after["requests_waiting"] == after["unsteered_requests"] == 0


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
    _, before = server.call("GET", "/v1/sparsesteer/specs")
    server.kill()
    again = Server(files[1], folder, tmp_path / "log").wait()
    try:
        assert again.complete(wanted[0][1], "set") == (200, wanted[1][1])
        assert again.call("GET", "/v1/sparsesteer/specs") == (200, before) and len(before["specs"]) == len(specs()) - 1
        assert again.complete(wanted[0][1], "last")[0] == 400
        code, answer = again.call("POST", "/v1/sparsesteer/specs?name=x", spec_files.to_bytes(specs()["last"]))
        assert code == 403 and "--allow-registration" in answer
    finally:
        again.stop()
