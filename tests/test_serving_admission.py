"""The core's books: who is let in, who waits for room, and that the banks always have what was promised."""

import gc
import random

import pytest
import test_serving_slots
from serving_cases import saes

import sparsesteer as ss
from sparsesteer.serving.admission import Admission, Capacity, Demand
from sparsesteer.serving.limits import Limits
from sparsesteer.serving.residency import Residency, SiteBank
from sparsesteer.serving.wishes import Refusal


def demand(*features):
    return Demand("all", 1.0, {0: frozenset(features)})


def admission(slots=3, rows=6, entries=8, limits=None):
    books = Admission(Capacity(slots, [(rows, entries)]), limits)
    for name, features in (("a", (1, 2)), ("b", (2, 3)), ("c", (4, 5)), ("d", (6, 7)), ("e", (1,))):
        books.learn(name * 16, demand(*features), name)
    return books


def test_a_request_waits_until_others_leave_it_room():
    books = admission(slots=2)
    a, again, b, c = (books.enter(wish, 5) for wish in ("a", "a@2", "b", "c@0.5"))
    assert [books.seat(claim) for claim in (a, again, b, c)] == [True, True, True, False]
    assert books.status() == {"specs": 5, "in_use": 2, "requests": 4, "waiting": 1, "slots": 2, "refused": {}}
    books.leave(a)
    assert not books.seat(c)
    books.leave(again)
    assert books.seat(c) and books.seat(c) and c.steered.strength == 0.5
    assert not books.seat(books.enter("a", 5))
    books.leave(b)
    books.leave(c)
    assert books.status()["in_use"] == 0 and books.status()["requests"] == 1


def test_who_leaves_while_waiting_takes_nothing_along():
    books = admission(slots=1)
    a, b = books.enter("a", 5), books.enter("b", 5)
    assert books.seat(a) and not books.seat(b)
    books.leave(b)
    assert books.status()["waiting"] == 0 and books.status()["in_use"] == 1
    books.leave(a)
    assert books.status()["in_use"] == 0


def test_shared_features_are_counted_once_and_entries_each_time():
    books = admission(rows=4)
    assert books.seat(books.enter("a", 5)) and books.seat(books.enter("b", 5))
    assert not books.seat(books.enter("c", 5))  # one row is left, it takes two
    assert books.seat(books.enter("e", 5))


def test_a_request_may_end_while_the_books_are_open():
    """The garbage collector finds requests at any moment, in the thread that holds the lock too."""
    books = admission()
    claim = books.enter("a", 5)
    with books._open_books():
        books.leave(claim)
        gc.collect()
    assert books.status()["requests"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_who_is_seated_always_fits_the_bank(seed):
    """Admission and banks count alike: the worker must never meet a request without room."""
    chance = random.Random(seed)
    books = Admission(Capacity(4, [(10, 14)]))
    bank = ss.Bank(saes()[1], capacity=10, slots=4, entries=14)
    resident = Residency([SiteBank(1, bank)], 4)
    known = {f"{i}": test_serving_slots.spec_of(*chance.sample(range(16), chance.randint(1, 6))) for i in range(20)}
    for name, spec in known.items():
        books.learn(name, Demand("all", 1.0, {0: frozenset(spec.by_block()[1].features.tolist())}))
    waiting, running, waits = [], [], 0
    for _ in range(400):
        if running and chance.random() < 0.45:
            claim = running.pop(chance.randrange(len(running)))
            books.leave(claim)
            resident.release(claim.steered.id)
        elif len(waiting) < 8:
            waiting.append(books.enter(chance.choice(list(known)), 5))
        for claim in [each for each in waiting if books.seat(each)]:
            waiting.remove(claim)
            running.append(claim)
            resident.acquire(claim.steered.id, known[claim.steered.id])
        waits += len(waiting)
    assert waits > 20 and resident.evictions > 20


@pytest.mark.parametrize(
    ("wish", "reason", "message"),
    [
        ("nobody", "unknown", "no spec 'nobody'"),
        ("a@200", "strength", "between -100 and 100"),
        ({"id": "a" * 16, "strength": 1.0, "windows": []}, "malformed", "should be text"),
        ("a@", "malformed", "'NAME' or 'NAME@STRENGTH'"),
        ("f", "positions", "outside a prompt of 5 tokens"),
    ],
    ids=["unknown", "strong", "forged", "malformed", "positions"],
)
def test_what_is_not_let_in(wish, reason, message):
    books = admission(limits=Limits())
    books.learn("f" * 16, Demand([7], 1.0, {}), "f")
    with pytest.raises(Refusal, match=message):
        books.enter(wish, 5)
    assert books.status()["requests"] == 0 and books.status()["refused"] == {reason: 1}


def test_a_spec_that_requests_use_or_wait_for_is_not_forgotten():
    books = admission(slots=1)
    running, waiting = books.enter("b", 5), books.enter("a", 5)
    assert books.seat(running) and not books.seat(waiting)
    with pytest.raises(ValueError, match="in use by 1 requests"):
        books.forget("a" * 16)
    books.leave(waiting)
    books.forget("a" * 16)
    for name in ("a", "a" * 16):
        with pytest.raises(Refusal, match="no spec"):
            books.enter(name, 5)
