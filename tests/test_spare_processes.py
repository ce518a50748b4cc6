"""A collection shared by two processes: each answers its parts once, both get what one process gets alone."""

import pytest
import torch
import torch.distributed as dist
from conflict_models import conflicts, model, sae, tokenizer
from torch import multiprocessing

import sparsesteer as ss
from sparsesteer.methods.spare import answering, fitting

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

LAYERS = (0, 2)


@pytest.fixture(scope="module")
def examples():
    return conflicts(model(), tokenizer(), n=26)


def fit(examples, folder, saes=None):
    return ss.SPARE.fit(
        model(), tokenizer(), saes or {layer: sae(layer) for layer in LAYERS}, examples,
        k=10, max_new_tokens=4, batch_size=2, folder=folder, progress=False,
    )  # fmt: skip


def fit_twice(examples, folder):
    """The second time with one part gone."""
    first = fit(examples, folder)
    dist.barrier()
    if dist.get_rank() == 0:
        sorted(folder.glob("part-*"))[1].unlink()
    dist.barrier()
    again = fit(examples, folder)
    return [{layer: each.statistics[layer].tensors() for layer in LAYERS} for each in (first, again)]


def without_folder(examples, folder):
    fit(examples, None)


def of_one_kind(examples, folder):
    fit([each for i, each in enumerate(examples) if i % 3 == 0], folder)


def nan_codes(examples, folder):
    broken = sae(0)
    broken.b_enc[7] = torch.nan
    fit(examples, folder, {0: broken})


WORKS = (fit_twice, without_folder, of_one_kind, nan_codes)


def outcome_of(work, examples, folder):
    """(prompts that this process answered, how often it measured features, the result or the error as text)."""
    seen, answers, statistics = [], answering.Answerer.answers, fitting.statistics_of

    def watched(self, some, options=None):
        seen.extend(conflict.prompt for conflict in some)
        return answers(self, some, options)

    def measured(*given):
        seen.append(None)
        return statistics(*given)

    answering.Answerer.answers, fitting.statistics_of = watched, measured
    try:
        result = work(examples, folder)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    finally:
        answering.Answerer.answers, fitting.statistics_of = answers, statistics
    return [each for each in seen if each is not None], seen.count(None), result


def one_of_two(rank, folder, examples):
    """Runs in a process of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    outcomes = {work.__name__: outcome_of(work, examples, folder / work.__name__) for work in WORKS}
    torch.save(outcomes, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(examples, tmp_path_factory):
    """What each of two processes made of every work."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(one_of_two, (folder, examples), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_processes_find_what_one_finds(examples, ranks):
    want = fit(examples, None)
    for rank in ranks:
        for found in rank["fit_twice"][2]:
            for layer in LAYERS:
                for name, tensor in want.statistics[layer].tensors().items():
                    assert torch.equal(found[layer][name], tensor)


def test_each_answers_its_share_and_the_first_measures(ranks):
    prompts = [rank["fit_twice"][0] for rank in ranks]
    # parts of 8, 8, 8 and 2: each process answers every second one; then the second part alone is answered again
    assert [len(each) for each in prompts] == [8 + 8, 8 + 2 + 8]
    assert len(set(prompts[0]) | set(prompts[1])) == 26
    assert [rank["fit_twice"][1] for rank in ranks] == [2, 0]


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (without_folder, "ValueError: SPARE: 2 processes meet in a folder that all of them see"),
        (of_one_kind, "ValueError: SPARE: answers of both kinds are needed"),
        (nan_codes, "ValueError: SPARE: the codes of feature 7 are NaN"),
    ],
)
def test_both_processes_are_told_what_does_not_fit(ranks, work, told):
    assert all(rank[work.__name__][2].startswith(told) for rank in ranks)


def test_processes_that_do_not_know_of_each_other_are_told(examples, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="one of 2 processes.*init_process_group"):
        fit(examples, None)
