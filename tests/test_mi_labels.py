"""Labels: annotators, votes, answers that are kept, and annotators that fail halfway or answer junk."""

import http.server
import json
import threading

import pytest

from sparsesteer import Explanations
from sparsesteer.methods.mi.asking import Asking, endpoint
from sparsesteer.methods.mi.labels import Annotation, JunkAnswer, label
from sparsesteer.methods.mi.steering import selected
from sparsesteer.methods.mi.word_lists import WordLists

LISTS = {"music": ["song", "guitar"], "sea": ["ship", "sail"]}


def explained(*lists):
    return Explanations.of(
        [[(word, float(-i)) for i, word in enumerate(words)] for words in lists], method="m", method_version="1"
    )


FOUND = explained(
    ["songs", "guitar", "x"], ["song", "x", "y", "Guitars"], [], ["ship", "x"], ["a", "ship", "sailor", "b"]
)


def test_word_lists_label_and_vote(tmp_path):
    got = label(FOUND, WordLists(LISTS), tmp_path / "answers.jsonl")
    assert [got.note(f).get("label") for f in range(5)] == ["music", "music", None, None, "sea"]
    assert [got.note(f).get("verdict") for f in range(5)] == ["yes", "no", None, "no", "yes"]
    assert got.note(0)["summary"] == "songs, guitar, x" and got.note(1)["votes"] == ["yes", "no", "no"]
    assert selected(got) == [0, 4] and selected(got, "sea") == [4]
    assert [[w.word for w in got[f]] for f in range(5)] == [[w.word for w in FOUND[f]] for f in range(5)]


@pytest.mark.parametrize(
    "votes, verdict",
    [
        (("yes", "yes", "no"), "yes"),
        (("yes", "probably", "no"), "no"),
        (("probably",) * 3, "probably"),
        (("no", "unlikely", "unlikely"), "unlikely"),
    ],
)
def test_two_votes_of_three_decide(votes, verdict):
    assert Annotation("s", "l", votes).verdict == verdict


class Counting:
    """Fails at the words that say so, and counts what it is asked."""

    name = "counting"

    def __init__(self, failing=(), junk=()):
        self.failing, self.junk, self.asked = failing, junk, []

    def annotate(self, words):
        if words[0] in self.failing:
            raise OSError("the line is dead")
        self.asked.append(words[0])
        if words[0] in self.junk:
            raise JunkAnswer("blah")
        return Annotation(words[0], "music", ("yes",) * 3)


def test_what_was_answered_survives_a_failure(tmp_path):
    path = tmp_path / "answers.jsonl"
    with pytest.raises(RuntimeError, match="counting failed.*the line is dead.*2 of 4 features are labelled"):
        label(FOUND, Counting(failing=["ship"]), path)
    assert len(path.read_text().splitlines()) == 2
    path.write_text(path.read_text() + '{"annotator": "coun')  # cut off while it was written
    again = Counting()
    got = label(FOUND, again, path)
    assert again.asked == ["ship", "a"] and selected(got) == [0, 1, 3, 4]
    third = Counting()
    label(FOUND, third, path)
    assert third.asked == []
    other = Counting()
    other.name = "another"
    label(FOUND, other, path)
    assert len(other.asked) == 4


def test_junk_is_kept_and_labels_nothing(tmp_path):
    got = label(FOUND, Counting(junk=["songs"]), tmp_path / "a.jsonl")
    assert got.note(0) == {} and selected(got) == [1, 3, 4]
    with pytest.raises(ValueError, match="3 of 4 answers are junk, such as 'blah'; all are in"):
        label(FOUND, Counting(junk=["songs", "song", "ship"]), tmp_path / "b.jsonl")
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 4
    maybe = Counting()
    maybe.annotate = lambda words: Annotation("s", "music", ("maybe",) * 3)
    with pytest.raises(ValueError, match=r"such as \"votes \['maybe'"):
        label(FOUND, maybe, tmp_path / "c.jsonl")


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no features with words"):
        label(FOUND, WordLists(LISTS), tmp_path / "a.jsonl", features=[2])
    (tmp_path / "b.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(ValueError, match="a line without 'annotator'"):
        label(FOUND, WordLists(LISTS), tmp_path / "b.jsonl")
    for lists in ({}, {"music": []}):
        with pytest.raises(ValueError, match="at least one word for each"):
            WordLists(lists)
    with pytest.raises(ValueError, match="at least one label"):
        Asking(str, "m", [])


def answering(summary="Music", vote="Yes.", label="Music"):
    def ask(question):
        if "Summary:\n" in question + "\n" and question.endswith("Summary:"):
            return summary
        return vote if "Is the summary true" in question else label

    return ask


def test_a_model_is_asked_for_summary_votes_and_label():
    asked = []
    plain = answering()
    asking = Asking(lambda q: (asked.append(q), plain(q))[1], "m", ["music", "the sea"])
    assert asking.annotate(["song", "guitar", "a", "b"]) == Annotation("Music", "music", ("yes",) * 3)
    assert len(asked) == len(set(asked)) == 5  # three votes on three orders of the words
    assert Asking(answering("Cannot tell"), "m", ["music"]).annotate(["x"]) == Annotation(None, None, ("no",) * 3)
    assert Asking(answering(label="none"), "m", ["music"]).annotate(["x"]).label is None


@pytest.mark.parametrize("given", [{"summary": ""}, {"summary": "x" * 300}, {"vote": "perhaps"}, {"label": "cars"}])
def test_answers_that_are_junk(given):
    with pytest.raises(JunkAnswer):
        Asking(answering(**given), "m", ["music"]).annotate(["song"])


@pytest.fixture
def server():
    """Answers with what ``replies`` holds; keeps what it was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.seen.append((self.path, self.headers.get("Authorization"), body))
            reply = self.server.replies.pop(0)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args):
            pass

    running = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    running.seen, running.replies = [], []
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def test_an_endpoint(server, monkeypatch):
    address = f"http://127.0.0.1:{server.server_port}/v1/"
    monkeypatch.setenv("A_KEY", "secret")
    server.replies += [
        json.dumps({"choices": [{"message": {"content": "Music"}}]}).encode(),
        b"<html>",
        b'{"choices": []}',
    ]
    ask = endpoint(address, "a-model", "A_KEY")
    assert ask("What?") == "Music"
    path, key, body = server.seen[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert body == {"model": "a-model", "temperature": 0, "messages": [{"role": "user", "content": "What?"}]}
    for _ in range(2):
        with pytest.raises(ValueError, match="an answer of another form"):
            ask("What?")
    with pytest.raises(ValueError, match="A_MISSING_KEY is not set"):
        endpoint(address, "m", "A_MISSING_KEY")
    with pytest.raises(ValueError, match="begin with http"):
        endpoint("localhost", "m")


def test_a_dead_endpoint_ends_the_run(tmp_path):
    asking = Asking(endpoint("http://127.0.0.1:9", "m", timeout=2), "m", ["music"])
    with pytest.raises(RuntimeError, match="m: music failed.*0 of 4 features are labelled"):
        label(FOUND, asking, tmp_path / "a.jsonl")
