"""The map of a step as it is found on the device, beside the one that the host writes."""

import numpy as np
import pytest
import torch
from test_serving_steps import POSITIONS, steered_places

from sparsesteer.serving.admission import Steered
from sparsesteer.serving.request_table import RequestTable, Row
from sparsesteer.serving.token_map import NO_SLOT
from sparsesteer.serving.windows import windows

CPU = torch.device("cpu")


def row(slot, positions, prompt_length, strength=1.0):
    return Row(slot, Steered("x", strength, windows(positions, prompt_length)))


def fill(table, indices, scheduled, computed, padding=0):
    """A step in which request ``indices[i]`` brings ``scheduled[i]`` tokens behind ``computed[i]``."""
    positions = np.concatenate([np.arange(c, c + n) for c, n in zip(computed, scheduled, strict=True)])
    stale = np.full(padding, 3)  # whatever the buffer held
    starts = np.concatenate([[0], np.cumsum(scheduled)])
    table.fill(
        torch.tensor(indices),
        torch.tensor(starts, dtype=torch.int32),
        torch.from_numpy(np.concatenate([positions, stale]).astype(np.int64)),
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_map_of_random_batches_is_right_token_by_token(seed):
    rng = np.random.default_rng(seed)
    table = RequestTable(256, 16, CPU)
    requests, n_steered = {}, 0
    for _ in range(6):
        for index in rng.choice(16, 5, replace=False):  # comes, or takes the index of one that has ended
            prompt, positions = int(rng.integers(4, 12)), POSITIONS[rng.integers(len(POSITIONS))]
            slot, strength = (None if rng.random() < 0.3 else int(rng.integers(5))), float(rng.normal())
            table.drop(int(index))
            table.stage(int(index), None if slot is None else row(slot, positions, prompt, strength))
            requests[int(index)] = prompt, positions, slot, strength
        table.apply()
        batch = rng.permutation(list(requests))[: rng.integers(1, 12)]
        scheduled, computed = rng.integers(0, 9, len(batch)), rng.integers(0, 15, len(batch))
        scheduled[0] = 1
        fill(table, batch, scheduled, computed, padding=int(rng.integers(0, 9)))
        n = 0
        for index, count, first in zip(batch, scheduled, computed, strict=True):
            prompt, positions, slot, strength = requests[int(index)]
            steered = steered_places(positions, prompt, 64)
            for place in range(first, first + count):
                wanted = slot if slot is not None and steered[place] else NO_SLOT
                assert table.slot[n] == wanted
                if wanted != NO_SLOT:
                    assert table.strength[n] == np.float32(strength)
                    n_steered += 1
                n += 1
        assert (table.slot[n:] == NO_SLOT).all()
    assert table.steered_tokens == n_steered


def test_padding_is_not_steered_whatever_its_buffer_held():
    table = RequestTable(32, 4, CPU)
    table.stage(2, row(7, "all", 4))
    table.apply()
    fill(table, [2], [3], [0], padding=5)
    assert table.slot.tolist() == [7] * 3 + [NO_SLOT] * 29


def test_a_long_list_of_places_makes_the_table_wider_and_keeps_its_tensors():
    table = RequestTable(32, 4, CPU)
    addresses = table.slot.data_ptr(), table.strength.data_ptr()
    table.stage(0, row(1, "prompt", 4))
    table.apply()
    table.stage(1, row(2, [0, 2, 3, 9, 11], 12))
    table.apply()
    fill(table, [0, 1], [6, 12], [0, 0])
    assert table.slot[:18].tolist() == [1] * 4 + [-1] * 2 + [2, -1, 2, 2, -1, -1, -1, -1, -1, 2, -1, 2]
    assert (table.slot.data_ptr(), table.strength.data_ptr()) == addresses


def test_nothing_is_left_when_the_last_steered_request_has_ended():
    table = RequestTable(16, 4, CPU)
    table.stage(0, row(1, "all", 4))
    table.stage(1, None)
    table.apply()
    fill(table, [0, 1], [4, 4], [0, 0])
    table.drop(0)
    fill(table, [1], [1], [4])
    assert (table.slot == NO_SLOT).all()


def test_a_request_staged_and_dropped_before_its_step_leaves_nothing():
    table = RequestTable(16, 4, CPU)
    table.stage(0, row(1, "all", 4))
    table.drop(0)
    table.apply()
    fill(table, [0], [4], [0])
    assert (table.slot == NO_SLOT).all()


def test_the_host_reads_nothing_back_in_a_step(monkeypatch):
    """Each of these would wait for a GPU."""
    table = RequestTable(32, 4, CPU)
    table.stage(0, row(1, [0, 2, -1], 9))
    table.apply()
    step = torch.tensor([0]), torch.tensor([0, 9], dtype=torch.int32), torch.arange(9)
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, lambda *args, name=name: pytest.fail(f"a tensor's {name} was called"))
    table.fill(*step)
    monkeypatch.undo()
    assert table.slot[:9].tolist() == [1, -1, 1, -1, -1, -1, -1, -1, 1]
