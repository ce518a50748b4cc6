"""Specs in slots: room, use, eviction and packing."""

import random

import pytest
import torch
from serving_cases import WIDTH, sae_at, saes

import sparsesteer as ss
from sparsesteer import ops
from sparsesteer.serving import ServedSpec
from sparsesteer.serving.declared_banks import banks_of
from sparsesteer.serving.residency import NoRoom, Residency, SiteBank
from sparsesteer.serving.settings import DeclaredSite, Settings, settings_of

CPU = torch.device("cpu")


def spec_of(*features, block=1, sae=None):
    plan = (sae or saes()[block]).plan(ss.Edit.set({feature: 5.0 for feature in features}))
    return ServedSpec({block: plan})


def residency(slots=3, capacity=6, entries=8, block=1):
    return Residency([SiteBank(block, ss.Bank(saes()[block], capacity=capacity, slots=slots, entries=entries))], slots)


def held(resident):
    """The features that the bank has in each slot."""
    bank = resident.banks[0].bank
    return {slot: features for slot, (_, features) in bank._held.items()}


def test_a_spec_is_loaded_once_and_stays_after_its_last_use():
    resident = residency()
    first = resident.acquire("a", spec_of(1, 2))
    assert resident.acquire("a", spec_of(1, 2)) == first and resident.loads == 1
    resident.release("a")
    resident.release("a")
    assert resident.in_use == 0 and len(resident) == 1
    assert resident.acquire("a", spec_of(1, 2)) == first and resident.loads == 1


def test_the_longest_unused_spec_makes_room():
    resident = residency()
    for name, feature in (("a", 1), ("b", 2), ("c", 3)):
        resident.acquire(name, spec_of(feature))
    for name in ("b", "a", "c"):
        resident.release(name)
    resident.acquire("d", spec_of(4))
    assert sorted(held(resident).values()) == [[1], [3], [4]]
    resident.acquire("a", spec_of(1))
    resident.acquire("e", spec_of(5))
    assert sorted(held(resident).values()) == [[1], [4], [5]]


def test_specs_in_use_are_never_evicted():
    resident = residency(slots=2)
    resident.acquire("a", spec_of(1))
    resident.acquire("b", spec_of(2))
    with pytest.raises(NoRoom, match="all 2 slots"):
        resident.acquire("c", spec_of(3))
    assert sorted(held(resident).values()) == [[1], [2]]
    resident.release("a")
    resident.acquire("c", spec_of(3))
    assert sorted(held(resident).values()) == [[2], [3]]


def test_features_in_use_leave_no_room_for_others_but_may_be_shared():
    resident = residency(capacity=3)
    resident.acquire("a", spec_of(1, 2))
    with pytest.raises(NoRoom, match="no feature rows"):
        resident.acquire("b", spec_of(3, 4))
    assert len(resident) == 1
    resident.acquire("c", spec_of(2, 3))


def test_entries_that_lie_apart_are_packed():
    resident = residency(slots=4, capacity=8, entries=8)
    for name, features in (("a", (1, 2)), ("b", (3, 4)), ("c", (1, 3)), ("d", (5, 6))):
        resident.acquire(name, spec_of(*features))
    resident.release("a")
    resident.release("c")
    kept = resident.acquire("b", spec_of(3, 4))
    resident.acquire("e", spec_of(1, 2, 7, 8))  # two free runs of two entries each
    assert held(resident)[kept] == [3, 4] and resident.evictions == 2


def test_what_lies_in_the_bank_steers_as_the_plan_does_whatever_came_and_went():
    chance, resident, in_use = random.Random(0), residency(slots=5, capacity=12, entries=16), []
    h = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0)).contiguous()
    known = {str(i): spec_of(*chance.sample(range(20), chance.randint(1, 4))) for i in range(30)}
    for _ in range(300):
        if in_use and (len(in_use) == 3 or chance.random() < 0.4):
            resident.release(in_use.pop(chance.randrange(len(in_use))))
            continue
        name = chance.choice(list(known))
        slot = resident.acquire(name, known[name])
        in_use.append(name)
        bank = resident.banks[0].bank
        plan = known[name].by_block()[1]
        steered = ops.steer_slots(h, bank, torch.full((4,), slot, dtype=torch.int32))
        torch.testing.assert_close(steered, ops.steer(h, plan), rtol=0, atol=1e-5)
    assert resident.evictions > 50


def test_a_plan_finds_the_bank_of_its_rules():
    topk = sae_at(1, ss.TopK(4))
    settings = Settings()
    relu = ServedSpec({1: topk.plan(ss.Edit.set({3: 5.0}), activation=ss.ReLU())})
    norm = ServedSpec({1: topk.plan(ss.Edit.set({3: 5.0}), activation=ss.ReLU(), preserve_norm=True)})
    resident = Residency(banks_of(settings, [relu, norm, relu], 4, CPU), 4)
    assert len(resident.banks) == 2
    assert resident.placed(relu) != resident.placed(norm)
    with pytest.raises(ValueError, match="fits no bank there"):
        resident.placed(spec_of(3))
    with pytest.raises(ValueError, match=r"no site was declared after block 2 .*\[1\]"):
        resident.placed(spec_of(3, block=2))


def test_a_constant_direction_needs_no_bank_of_its_own_sae():
    resident = residency()
    direction = ServedSpec({1: sae_at(1, seed=9).plan(ss.Edit.add({3: 2.0}))})
    slot = resident.acquire("a", direction)
    h = torch.randn(2, WIDTH)
    steered = ops.steer_slots(h, resident.banks[0].bank, torch.full((2,), slot, dtype=torch.int32))
    torch.testing.assert_close(steered, ops.steer(h, direction.by_block()[1]))


def test_more_features_than_rows_are_refused_when_registered():
    with pytest.raises(ValueError, match="edits 7 features, the site's bank has 6 rows"):
        residency().placed(spec_of(*range(7)))


def test_banks_of_declared_sites(tmp_path):
    saes()[1].save(tmp_path / "sae")
    declared = DeclaredSite(str(tmp_path / "sae"), site=2, features=9)
    [bank] = banks_of(Settings((declared,)), [], 4, CPU)
    assert bank.block == 2 and bank.bank.encoder.shape == (9, WIDTH) and len(bank.bank.slots) == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "should be a mapping"),
        ({"site": []}, "'site' is not known there; sites, specs, slots, limits, allow_registration, v2_runner are"),
        ({"sites": {}}, "a list of"),
        ({"sites": [{}]}, r"sites\[0\] needs the sae"),
        ({"sites": [{"sae": "x", "rows": 3}]}, r"sites\[0\]: 'rows' is not known"),
        ({"limits": {"most": 3}}, "limits: 'most' is not known"),
    ],
)
def test_settings_that_are_not_known(config, message):
    with pytest.raises(ValueError, match=message):
        settings_of({"sparsesteer": config})


def test_no_settings_are_none():
    assert settings_of({}) is None and settings_of({"other": 1}) is None and settings_of(None) is None
