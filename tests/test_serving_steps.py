"""Which tokens of a step are steered, and by which slot: windows, wishes and the map."""

import numpy as np
import pytest
import torch
from serving_cases import WIDTH, sae_at

import sparsesteer as ss
from sparsesteer.serving.admission import Steered
from sparsesteer.serving.steered_block import steer_block
from sparsesteer.serving.token_map import NO_SLOT, TokenMap
from sparsesteer.serving.vllm_worker import warn_of_slow_ops
from sparsesteer.serving.windows import END, windows, within
from sparsesteer.serving.wishes import Wish, parse_wish

POSITIONS = ["all", "prompt", "last_prompt", "generated", slice(2, None), slice(-3, None), slice(1, -1), slice(4, 2),
             slice(None, 99), [0], [3, 1, -1, 3], slice(-99, 2)]  # fmt: skip


def steered_places(positions, prompt_length, total):
    """By the meaning of ``ss.steer``, place by place."""
    places = np.arange(total)
    if isinstance(positions, str):
        return {
            "all": places >= 0,
            "prompt": places < prompt_length,
            "last_prompt": places == prompt_length - 1,
            "generated": places >= prompt_length,
        }[positions]
    if isinstance(positions, list):
        return np.isin(places, [p % prompt_length for p in positions])
    prompt = list(range(prompt_length))[positions]
    tail = places >= max(prompt_length, positions.start or 0) if positions.stop is None else places < 0
    return np.isin(places, prompt) | tail


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_windows_are_the_places_that_steer_means(positions):
    found = windows(positions, 7)
    inside = [any(first <= place < last for first, last in found) for place in range(12)]
    assert inside == steered_places(positions, 7, 12).tolist()
    assert list(found) == sorted(found)


def test_a_slice_may_begin_behind_the_prompt():
    assert windows(slice(9, None), 7) == ((9, END),)


@pytest.mark.parametrize("index", [7, -8])
def test_an_index_outside_of_the_prompt_is_refused(index):
    with pytest.raises(ValueError, match=f"index {index} is outside a prompt of 7 tokens"):
        windows([index], 7)


def test_windows_are_cut_to_a_block():
    assert within(((0, 3), (5, 6), (8, END)), 2, 10) == ((2, 3), (5, 6), (8, 10))
    assert within(((0, 3),), 3, 10) == ()


@pytest.mark.parametrize(
    ("value", "wish"),
    [("polite", Wish("polite")), ("polite@0.8", Wish("polite", 0.8)), ("a.b-c_1@-2", Wish("a.b-c_1", -2.0))],
)
def test_wishes(value, wish):
    assert parse_wish(value) == wish


@pytest.mark.parametrize(
    "value", ["", "@1", "a@", "a@b", "a@1@2", "a@nan", "a@inf", "../a", "a b", "x" * 65, "a@1e999"]
)
def test_wishes_that_are_none(value):
    with pytest.raises(ValueError, match="'NAME' or 'NAME@STRENGTH'"):
        parse_wish(value)


@pytest.mark.parametrize("value", [3, 1.0, ["a"], {"id": "a"}, True])
def test_wishes_are_text(value):
    with pytest.raises(ValueError, match="should be text"):
        parse_wish(value)


def test_what_travels_to_the_workers_comes_back():
    steered = Steered("a", 0.5, ((0, 1), (4, END)))
    assert Steered.of(steered.document()) == steered
    assert Steered.of("a") is None and Steered.of(None) is None


def random_batch(rng, n_rows):
    """Rows with a slot and positions, and how many of their tokens were computed and are scheduled."""
    rows = {}
    for row in range(n_rows):
        prompt = int(rng.integers(4, 12))
        positions = POSITIONS[rng.integers(len(POSITIONS))]
        slot = None if rng.random() < 0.3 else int(rng.integers(0, 5))
        rows[f"r{row}"] = prompt, positions, slot, float(rng.normal())
    return rows, rng.integers(1, 9, n_rows).astype(np.int32), rng.integers(0, 15, n_rows).astype(np.int32)


@pytest.mark.parametrize("seed", range(20))
def test_the_map_of_a_random_batch_is_right_token_by_token(seed):
    rng = np.random.default_rng(seed)
    tokens = TokenMap(256, 16, torch.device("cpu"))
    for step in range(4):  # they follow one another on the same tensors
        rows, scheduled, computed = random_batch(rng, int(rng.integers(1, 12)))
        if step % 2:
            scheduled[:] = 1  # every request generates
        ids = [f"{seed}-{rng.integers(1e9)}-{name}" for name in rows]
        by_id = dict(zip(ids, rows.values(), strict=True))

        def of(request, by_id=by_id):
            prompt, positions, slot, strength = by_id[request]
            return None if slot is None else (slot, Steered("x", strength, windows(positions, prompt)))

        tokens.set_rows(ids, of)
        tokens.fill(scheduled, computed)
        n = 0
        for row, request in enumerate(ids):
            prompt, positions, slot, strength = by_id[request]
            steered = steered_places(positions, prompt, 64)
            for place in range(computed[row], computed[row] + scheduled[row]):
                wanted = slot if slot is not None and steered[place] else NO_SLOT
                assert tokens.slot[n] == wanted
                if wanted != NO_SLOT:
                    assert tokens.strength[n] == np.float32(strength)
                n += 1
        assert (tokens.slot[n:] == NO_SLOT).all()
        assert tokens.idle == (tokens.slot == NO_SLOT).all()


def test_a_step_without_steering_leaves_nothing_of_the_one_before():
    tokens = TokenMap(16, 4, torch.device("cpu"))
    steered = Steered("x", 1.0, windows("all", 4))
    tokens.set_rows(["a", "b"], {"a": (2, steered), "b": None}.get)
    tokens.fill(np.array([3, 2], np.int32), np.array([0, 4], np.int32))
    assert tokens.slot.tolist() == [2] * 3 + [NO_SLOT] * 13
    tokens.set_rows(["b"], {"b": None}.get)
    tokens.fill(np.array([1], np.int32), np.array([6], np.int32))
    assert (tokens.slot == NO_SLOT).all()


def block_with_ops(may_skip):
    """A block that adds 1, steered by nothing but counted, its map of tokens, and the calls of its readers."""
    block, tokens, calls = torch.nn.Identity(), TokenMap(16, 4, torch.device("cpu")), []
    block.forward = lambda hidden, residual: (hidden + 1, residual)
    sae = sae_at(1)
    steer_block(block, [ss.Bank(sae, capacity=4, slots=2)], tokens, may_skip=may_skip)
    block.sparsesteer[0].register_forward_hook(lambda *call: calls.append(1))
    return block, tokens, calls


@pytest.mark.parametrize(("may_skip", "of_idle_steps"), [(True, 0), (False, 2)])
def test_only_a_step_that_is_kept_runs_its_ops_for_nobody(may_skip, of_idle_steps):
    block, tokens, calls = block_with_ops(may_skip)
    hidden, residual = torch.zeros(2, 3, WIDTH)
    steered = {"a": (0, Steered("x", 1.0, windows("prompt", 4)))}.get
    one = np.array([3], np.int32)
    assert block(hidden, residual)[0].eq(1).all() and len(calls) == of_idle_steps // 2
    tokens.set_rows(["a"], steered)
    tokens.fill(one, np.array([0], np.int32))
    block(hidden, residual)
    assert len(calls) == of_idle_steps // 2 + 1
    tokens.fill(one, np.array([4], np.int32))  # behind the prompt nobody is steered
    block(hidden, residual)
    assert len(calls) == of_idle_steps + 1


def test_a_worker_says_that_it_has_no_compiled_kernels(monkeypatch, caplog):
    monkeypatch.setattr("sparsesteer._dispatch.missing", lambda backend: "")
    warn_of_slow_ops(torch.device("cpu"))
    assert not caplog.records
    monkeypatch.setattr("sparsesteer._dispatch.missing", lambda backend: f"{backend} was not built")
    warn_of_slow_ops(torch.device("cpu"))
    assert "takes far longer: native was not built" in caplog.text
