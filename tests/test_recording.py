"""A recording once it is there: its parts, its files, its picture."""

import json

import pytest
import torch
from recordings import SITE, recording
from safetensors.torch import save_file

import sparsesteer as ss
from sparsesteer.recording.recording import Entries, Recording
from sparsesteer.recording.watched import WatchedFeature


def entries(n, start=0, m=1, number=0):
    values = torch.arange(start, start + n * m, dtype=torch.float32).view(n, m)
    whole = torch.arange(start, start + n)
    return Entries(whole, torch.full((n,), number), whole, torch.zeros(n).bool(), values, -values)


def same(one, other):
    assert one.features == other.features and one.texts == other.texts
    for mine, yours in zip(one.entries, other.entries, strict=True):
        assert mine.dtype == yours.dtype and torch.equal(mine, yours)


def test_parts_are_joined_in_order():
    made = Recording([WatchedFeature(SITE, 3)])
    assert len(made) == 0 and made.before.shape == (0, 1) and made.sequence_numbers == [] and made.texts is None
    made.add(entries(2), 2)
    assert made.tokens.tolist() == [0, 1]
    made.add(lambda: entries(3, start=2), 3)
    assert made.tokens.tolist() == [0, 1, 2, 3, 4]
    assert made.before[:, 0].tolist() == [0, 1, 2, 3, 4] and made.after[:, 0].tolist() == [0, -1, -2, -3, -4]
    assert repr(made) == "Recording(5 tokens, 1 sequences, 1 features)"


@pytest.mark.parametrize("last", [0, 1, 2, 5, 6, 7, 100])
@pytest.mark.parametrize("looked_at", [False, True])
def test_only_the_last_tokens_are_kept(last, looked_at):
    made = Recording([WatchedFeature(SITE, 3)], last=last)
    for start in range(0, 12, 3):
        made.add(entries(3, start), 3)
        if looked_at:
            assert made.tokens.tolist() == list(range(start + 3))[start + 3 - min(last, start + 3) :]
        assert sum(made._sizes) < last + 3
    assert made.tokens.tolist() == list(range(12))[12 - min(last, 12) :]


def test_sequences_and_sites():
    made = Recording([WatchedFeature("blocks.1.hook_resid_post", 3), WatchedFeature("model.layers.2", 4)])
    for part in (entries(2, m=2), entries(3, 10, m=2, number=7), entries(1, 20, m=2)):
        made.add(part, len(part.tokens))
    assert made.sequence_numbers == [0, 7]
    assert made.sequence(0).tokens.tolist() == [0, 1, 20] and made.sequence(7).before.tolist()[0] == [10, 11]
    assert made.at(1).before.tolist() == made.before[:, :1].tolist()
    assert made.at("model.layers.2").features == made.features[1:]
    with pytest.raises(ValueError, match=r"no sequence 3, only \[0, 7\]"):
        made.sequence(3)
    with pytest.raises(ValueError, match=r"no site 5, only \['blocks.1.hook_resid_post', 'model.layers.2'\]"):
        made.at(5)


def test_a_dictionary_of_plain_python():
    made = recording(("a", "b"), number=4)
    found = json.loads(json.dumps(made.to_dict()))
    assert found == {
        "version": 1,
        "features": [{"site": SITE, "feature": 12}, {"site": SITE, "feature": 99}],
        "sequences": [
            {
                "number": 4, "texts": ["a", "b"], "tokens": [10, 11], "positions": [0, 1], "generated": [False, True],
                "before": [[0.0, 0.25], [0.5, 0.75]], "after": [[0.0, 0.5], [1.0, 1.5]],
            }
        ],
    }  # fmt: skip


def test_saved_and_loaded(tmp_path):
    made = recording(("a", "é\n", "🚢"), into=recording())
    path = made.save(tmp_path / "new folder" / "some.safetensors")
    same(ss.Recording.load(path), made)
    same(ss.Recording.load(path).sequence(0), made.sequence(0))
    bare = Recording(made.features)
    bare.add(made.entries, len(made))
    same(ss.Recording.load(bare.save(tmp_path / "bare.safetensors")), bare)
    empty = Recording(made.features)
    same(ss.Recording.load(empty.save(tmp_path / "empty.safetensors")), empty)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.safetensors", "empty.safetensors", "new folder"]


def test_saved_as_json(tmp_path):
    made = recording()
    made.after[0, 0] = torch.nan
    found = json.loads(made.save(tmp_path / "some.json").read_text(), parse_constant=pytest.fail)
    assert found["sequences"][0]["after"][0][0] is None
    assert found["sequences"][0]["before"] == made.before.tolist()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = recording().save(tmp_path / "some.json")
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        recording(("other",)).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"end with .safetensors or .json, got 'some.csv'"):
        recording().save(tmp_path / "some.csv")
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Recording.load(path)
    save_file({"tokens": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a recording"):
        Recording.load(path)
    save_file({"tokens": torch.zeros(1)}, path, metadata={"recording": '{"version": 9}'})
    with pytest.raises(ValueError, match="version 9, this sparsesteer reads 1"):
        Recording.load(path)
    description = json.dumps({"version": 1, "features": [], "texts": None})
    for tensors in ({"before": torch.zeros(1)}, {"tokens": torch.zeros(2, dtype=torch.int64)}):
        save_file(tensors, path, metadata={"recording": description})
        with pytest.raises(ValueError, match="not a complete recording"):
            Recording.load(path)
    good = recording().entries._asdict()
    description = json.dumps({"version": 1, "features": [{"site": SITE, "feature": 1}], "texts": None})
    save_file(good, path, metadata={"recording": description})  # two columns, one feature
    with pytest.raises(ValueError, match="do not fit each other"):
        Recording.load(path)


class Words:
    """A tokenizer of whole words whose characters may take two tokens."""

    texts = {1: b"A", 2: b" ship", 3: "é".encode()[:1], 4: "é".encode()[1:], 5: b"\xff"}

    def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
        assert not skip_special_tokens and not clean_up_tokenization_spaces
        return b"".join(self.texts[i] for i in ids).decode(errors="replace").removeprefix(" ")


def test_texts_of_tokens():
    made = Recording([WatchedFeature(SITE, 3)], tokenizer=Words())
    ids = torch.tensor([1, 2, 3, 4, 2, 5, -1, 1])
    n = len(ids)
    made.add(Entries(ids, torch.zeros(n).long(), torch.arange(n), torch.zeros(n).bool(), *[torch.zeros(n, 1)] * 2), n)
    # a character stands at its last token, one that never ends at the fourth after it or not at all
    assert made.texts == ("A", " ship", "", "é", " ship", "", "", "A")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
@pytest.mark.parametrize("steered", [False, True])
def test_picture(tmp_path, ending, steered):
    pytest.importorskip("matplotlib")
    many = 25 if ending == "svg" and steered else 3  # more tokens than labels have room
    made = recording(("The", "\n", " $x$", "_{2}") * many, 2, n_generated=5, steered=steered)
    path = made.plot(tmp_path / f"picture.{ending}")
    content = path.read_bytes()
    assert {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}[ending] in content[:1000]
    assert list(tmp_path.iterdir()) == [path]


def test_the_picture_shows_the_numbers(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: drawn.append(figure))
    made = recording()
    made.plot(tmp_path / "picture.png")
    panels = drawn[0].axes
    assert [panel.get_title("left") for panel in panels] == ["feature 12", "feature 99"]
    for column, panel in enumerate(panels):
        before, after = (line.get_ydata().tolist() for line in panel.lines[:2])
        assert before == made.before[:, column].tolist() and after == made.after[:, column].tolist()
        assert panel.get_ylim()[1] > max(after)
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == list(made.texts)


def test_a_first_token_beyond_the_scale_is_written(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: drawn.append(figure))
    made = recording(n_features=1)
    made.after[0], made.after[1, 0] = 500.0, torch.nan
    made.plot(tmp_path / "picture.png")
    [panel] = drawn[0].axes
    assert panel.get_ylim()[1] < 3 and [text.get_text() for text in panel.texts] == ["↑ 500"]


def test_pictures_that_cannot_be(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="nothing was recorded"):
        Recording([WatchedFeature(SITE, 3)]).plot(tmp_path / "picture.png")
    two = recording(into=recording(number=5))
    with pytest.raises(ValueError, match=r"2 sequences; name one of \[0, 5\], as in plot\(path, sequence=0\)"):
        two.plot(tmp_path / "picture.png")
    with pytest.raises(ValueError, match=r"end with .png, .svg or .pdf, got 'picture.docx'"):
        two.plot(tmp_path / "picture.docx", sequence=5)
    assert not list(tmp_path.iterdir())


def test_a_picture_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        recording().plot(tmp_path / "picture.png")
