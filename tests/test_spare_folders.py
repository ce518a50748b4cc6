"""Collections in folders: interrupted ones go on, others are not mixed in, damaged parts are told."""

import shutil

import fit_cases
import pytest
import torch
from conflict_models import model
from fit_cases import LAYERS, by_hand, fit

from sparsesteer.methods.spare import answering, collect_states, collection

world = fit_cases.world
pytestmark = pytest.mark.usefixtures("one_thread_throughout")


@pytest.fixture
def answered(monkeypatch):
    """Numbers of prompts in the batches that the model answered; raises where it is told to."""
    seen, answers = [], answering.Answerer.answers

    def watched(self, some):
        if len(seen) == watched.stop_at:
            raise KeyboardInterrupt
        seen.append(len(some))
        return answers(self, some)

    watched.stop_at = None
    monkeypatch.setattr(answering.Answerer, "answers", watched)
    seen_and_control = seen, watched
    return seen_and_control


def test_an_interrupted_collection_goes_on(world, answered, tmp_path):
    seen, control = answered
    want = fit(world)
    in_all = sum(seen)
    seen.clear()
    control.stop_at = 6
    with pytest.raises(KeyboardInterrupt):
        fit(world, folder=tmp_path / "answers")
    n_parts = len(list((tmp_path / "answers").glob("part-*.safetensors")))
    assert n_parts == 6 // collection.BATCHES_A_PART
    control.stop_at = None
    seen.clear()
    found = fit(world, folder=tmp_path / "answers")
    assert sum(seen) == in_all - n_parts * collection.BATCHES_A_PART * 3
    seen.clear()
    again = fit(world, folder=tmp_path / "answers", k=5)
    assert not seen
    for spare in (found, again):
        for layer in LAYERS:
            for name, tensor in want.statistics[layer].tensors().items():
                assert torch.equal(spare.statistics[layer].tensors()[name], tensor)


def test_states_alone_share_the_folder_of_a_fit(world, answered, tmp_path):
    seen, _ = answered
    found = collect_states(
        *world[:2], LAYERS, world[2], max_new_tokens=4, batch_size=3, folder=tmp_path / "one", progress=False
    )
    assert sum(seen) == 26 and found.counts() == fit(world).about["answers"]
    labels, states = by_hand(world)
    assert torch.equal(found.labels.long(), labels)
    torch.testing.assert_close(found.states[2], states[2], rtol=1e-4, atol=1e-5)
    seen.clear()
    fit(world, folder=tmp_path / "one")
    assert not seen
    with pytest.raises(ValueError, match="SPARE: there is no block 7"):
        collect_states(*world[:2], [7], world[2])


def test_other_collections_do_not_mix(world, tmp_path):
    the_model, the_tokenizer, examples = world
    fit(world, folder=tmp_path / "one")
    for changed, named in (
        ({"examples": examples[:-1]}, "examples, examples_sha256"),
        ({"layers": [0]}, "sites"),
        ({"max_new_tokens": 3}, "max_new_tokens"),
        ({"means": "confidence"}, "losses"),
    ):
        with pytest.raises(ValueError, match=f"holds a collection that differs in {named}"):
            fit(world, folder=tmp_path / "one", **changed)
    other = model()
    other.lm_head.weight.data += 0.1
    with pytest.raises(ValueError, match="differs in model_sha256"):
        fit((other, the_tokenizer, examples), folder=tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and holds no collection"):
        fit(world, folder=tmp_path / "two")


def test_a_damaged_part_is_told_and_can_be_collected_again(world, tmp_path):
    want = fit(world, folder=tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    part = sorted((tmp_path / "two").glob("part-*"))[1]
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{part.name} is damaged .* remove it, and it is collected again"):
        fit(world, folder=tmp_path / "two")
    part.unlink()
    found = fit(world, folder=tmp_path / "two")
    assert torch.equal(found.statistics[0].mi, want.statistics[0].mi)
    shutil.copy(sorted((tmp_path / "one").glob("part-*"))[-1], part)
    with pytest.raises(ValueError, match=r"does not have 12 examples"):
        fit(world, folder=tmp_path / "two")
