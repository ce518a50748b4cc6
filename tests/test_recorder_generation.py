"""Recording over many calls of the model: caches, padding, conversations, and what is refused."""

import copy

import models
import pytest
import torch
from models import plan, prompts
from test_hooks_positions import N_NEW, endless, padded
from test_hooks_positions import rows as unpadded_rows
from test_recorder import FEATURES, make_sae
from transformers import DynamicCache

import sparsesteer as ss

pytestmark = pytest.mark.usefixtures("one_thread")

SITE = 1
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def llama():
    return endless(models.llama())


@pytest.fixture(scope="module")
def sae():
    return make_sae()


def generate(model, ids, mask=None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(ids, attention_mask=mask, max_new_tokens=N_NEW, **{"do_sample": False, **options})


@torch.no_grad()
def at_once(model, sae, ids):
    """The recording of one finished row, read in a single call."""
    with ss.record(model, sae, FEATURES) as recording:
        model(ids[None], use_cache=False)
    return recording


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("steered", [False, True], ids=["", "steered"])
def test_generation_is_recorded_once_a_token(llama, sae, use_cache, steered):
    ids = prompts()
    strength = 1.0 if steered else 0.0
    with ss.steer(llama, {SITE: plan()}, strength):
        expected = generate(llama, ids, use_cache=use_cache)
        with ss.record(llama, sae, FEATURES) as recording:
            assert torch.equal(generate(llama, ids, use_cache=use_cache), expected)
        wholes = [at_once(llama, sae, row[:-1]) for row in expected]
    assert recording.sequence_numbers == [0, 1]
    for number, (row, whole) in enumerate(zip(expected, wholes, strict=True)):
        part = recording.sequence(number)
        assert torch.equal(part.tokens, row[:-1])  # the last token is not read
        assert part.positions.tolist() == list(range(len(row) - 1))
        assert part.generated.tolist() == [False] * ids.shape[1] + [True] * (N_NEW - 1)
        torch.testing.assert_close(part.before, whole.before, **CLOSE)
        torch.testing.assert_close(part.after, whole.after, **CLOSE)
        assert torch.equal(part.before, part.after) != steered


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(llama, sae, side):
    ids, mask = padded(side)
    with ss.record(llama, sae, FEATURES) as recording:
        if side == "left":
            expected = [row[mask_row.bool()] for row, mask_row in zip(ids, mask, strict=True)]
            new = generate(llama, ids, mask)[:, ids.shape[1] : -1]
            expected = [torch.cat(pair) for pair in zip(expected, new, strict=True)]
        else:
            llama(ids, attention_mask=mask)
            expected = [row[0] for row in unpadded_rows()]
    for number, row in enumerate(expected):
        part = recording.sequence(number)
        assert torch.equal(part.tokens, row)
        assert part.positions.tolist() == list(range(len(row)))
        torch.testing.assert_close(part.before, at_once(llama, sae, row).before, **CLOSE)


@torch.no_grad()
def test_each_prompt_is_a_sequence(llama, sae):
    with ss.record(llama, sae, FEATURES) as recording:
        for n in (5, 6, 6):
            generate(llama, prompts(1, n, seed=n))
        llama(prompts(2, 4))
    lengths = [len(recording.sequence(number)) for number in recording.sequence_numbers]
    assert lengths == [5 + N_NEW - 1, 6 + N_NEW - 1, 6 + N_NEW - 1, 4, 4]


@torch.no_grad()
def test_sampled_sequences_are_rows_of_their_own(llama, sae):
    torch.manual_seed(0)
    with ss.record(llama, sae, FEATURES) as recording:
        out = generate(llama, prompts(1), do_sample=True, num_return_sequences=3)
    assert [recording.sequence(number).tokens.tolist() for number in range(3)] == out[:, :-1].tolist()


@torch.no_grad()
def test_a_conversation_that_keeps_its_cache(llama, sae):
    first, second, cache = prompts(1, 5, seed=1), prompts(1, 4, seed=2), DynamicCache()
    with ss.record(llama, sae, FEATURES) as recording:
        turn = generate(llama, first, past_key_values=cache)
        both = torch.cat([turn, second], dim=1)
        out = generate(llama, both, past_key_values=cache)
    assert recording.sequence_numbers == [0]
    assert recording.tokens.tolist() == out[0, :-1].tolist()
    assert recording.positions.tolist() == list(range(out.shape[1] - 1))
    marks = [False] * 5 + [True] * (N_NEW - 1) + [False] * 5 + [True] * (N_NEW - 1)  # a turn's last token comes late
    assert recording.generated.tolist() == marks
    torch.testing.assert_close(recording.before, at_once(llama, sae, out[0, :-1]).before, **CLOSE)


@torch.no_grad()
def test_a_loop_by_hand_and_a_cache_from_before(llama, sae):
    ids = prompts(1, 7)
    with ss.record(llama, sae, FEATURES) as recording:
        cache = llama(ids[:, :4], use_cache=True).past_key_values
        for i in range(4, 7):
            cache = llama(ids[:, i : i + 1], past_key_values=cache).past_key_values
    assert recording.sequence_numbers == [0] and recording.tokens.tolist() == ids[0].tolist()
    earlier = llama(ids[:, :4], use_cache=True).past_key_values
    with ss.record(llama, sae, FEATURES) as rest:
        llama(ids[:, 4:], past_key_values=earlier)
    assert rest.positions.tolist() == [4, 5, 6]
    torch.testing.assert_close(rest.before, recording.before[4:], **CLOSE)


@torch.no_grad()
def test_two_caches_in_turn_and_one_that_was_cut(llama, sae):
    one, other = prompts(1, 4, seed=1), prompts(1, 4, seed=2)
    with ss.record(llama, sae, FEATURES) as recording:
        caches = [llama(ids, use_cache=True).past_key_values for ids in (one, other)]
        llama(one[:, :1], past_key_values=caches[0])  # not the cache of the call before: a sequence of its own
        llama(one[:, :1], past_key_values=caches[0])
        caches[0].crop(-2)
        llama(one[:, :1], past_key_values=caches[0])
    assert recording.sequences.tolist() == [0] * 4 + [1] * 4 + [2, 2, 3]
    assert recording.positions.tolist() == [*range(4), *range(4), 4, 5, 4]


@torch.no_grad()
def test_embeddings_in_place_of_ids(llama, sae):
    ids = prompts()
    with ss.record(llama, sae, FEATURES) as by_ids:
        llama(ids)
    with ss.record(llama, sae, FEATURES) as by_embeddings:
        llama(inputs_embeds=llama.model.embed_tokens(ids))
    assert torch.equal(by_ids.before, by_embeddings.before)
    assert set(by_embeddings.tokens.tolist()) == {-1}


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
def test_beams_are_refused_and_only_while_recording(llama, sae, use_cache):
    ids = prompts()
    expected = generate(llama, ids, num_beams=3, use_cache=use_cache)
    with ss.record(llama, sae, FEATURES), pytest.raises(ValueError, match="record: beam search moves the rows"):
        generate(llama, ids, num_beams=3, use_cache=use_cache)
    assert torch.equal(generate(llama, ids, num_beams=3, use_cache=use_cache), expected)


@torch.no_grad()
def test_a_cache_is_left_as_it_was(llama, sae):
    ids = prompts(1, 4)
    with ss.record(llama, sae, FEATURES):
        cache = llama(ids, use_cache=True).past_key_values
        copied = copy.deepcopy(cache)
        for each in (cache, copied):
            with pytest.raises(ValueError, match="beam search"):
                each.reorder_cache(torch.tensor([0]))
    assert "reorder_cache" not in vars(cache)
    for each in (cache, copied):
        each.reorder_cache(torch.tensor([0]))
        assert each.get_seq_length() == 4


@torch.no_grad()
def test_texts_and_pages_of_a_generation(llama, sae, tmp_path):
    class Tokenizer:
        def decode(self, ids, **options):
            return "".join(f" w{i}" for i in ids)

    with ss.record(llama, sae, FEATURES, tokenizer=Tokenizer()) as recording:
        out = generate(llama, prompts())
    assert recording.sequence(1).texts == tuple(f" w{i}" for i in out[1, :-1].tolist())
    page = recording.to_html(tmp_path / "page.html").read_text()
    assert all(f'" w{i}"' in page for i in out[:, :-1].flatten().tolist())
