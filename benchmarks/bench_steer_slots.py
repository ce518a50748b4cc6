"""``steer_slots``, a plan for each token, beside others: python -m sparsesteer.benchmarks.bench_steer_slots --quick"""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import sparsesteer as ss
from sparsesteer import ops
from sparsesteer.benchmarks import competitors, gate, harness
from sparsesteer.benchmarks.case import DTYPES, Case
from sparsesteer.benchmarks.harness import Bench, Contender, Race, Run
from sparsesteer.benchmarks.weights import BIAS, THRESHOLD, VALUE, Weights
from sparsesteer.plans import SteeringPlan

SLOT_LOOP = "gathered torch, a loop over slots"
TOKEN_BMM = "gathered torch, a product for each token"
STEER_LOOP = "our steer, a loop over slots"
SHAPES, QUICK_SHAPES = ((576, 4608), (2304, 16384), (4096, 32768)), ((2304, 16384),)
TOKENS, QUICK_TOKENS = (1, 8, 32, 128, 512), (1, 8, 32, 512)
USUAL = (16, 8)  # M and S
OTHERS = ((1, 8), (64, 8), (16, 1), (16, 32))
DECODE_TOKENS = 32  # up to there each token is a request of its own; more are prompts, which lie together
MOST_GATHERED_BYTES = 1 << 30  # that a contender copies out of the tables


def cases(quick: bool, device: str) -> list[Case]:
    """S requests at a time, each with M features of its own; no more slots than tokens."""
    found = []
    for shape in QUICK_SHAPES if quick else SHAPES:
        for n in QUICK_TOKENS if quick else TOKENS:
            kinds = {(m, min(s, n)) for m, s in ((USUAL,) if quick else (USUAL, *OTHERS))}
            found += [Case("steer_slots", *shape, n, M=m, S=s) for m, s in sorted(kinds)]
            if not quick:
                found.append(Case("steer_slots", *shape, n, M=USUAL[0], S=min(USUAL[1], n), dtype="bf16"))
    return found


def races(case: Case, weights: Weights, run: Run) -> Iterator[Race]:
    """Slots hold different features of one SAE."""
    h, slot = harness.tokens(case, run.device), slots_of(case, run.device)
    plans = weights.plans(case.M, case.S)
    bank = bank_of(case, weights)
    n_gathered = 2 * case.N * case.M * case.D * DTYPES[case.row_dtype].itemsize
    contenders = [
        Contender(SLOT_LOOP, lambda: [partial(slot_loop(plans, competitors.gathered), h, slot)], in_graph=False),
        Contender(STEER_LOOP, lambda: [partial(slot_loop(plans, competitors.ours), h, slot)], in_graph=False),
    ]
    if n_gathered <= MOST_GATHERED_BYTES:
        contenders.append(Contender(TOKEN_BMM, lambda: [partial(token_bmm(plans), h, slot)]))
    truth = by_slot(plans, h, slot, case)
    yield Race([partial(ops.steer_slots, h, bank, slot)], contenders, truth.check)


def slots_of(case: Case, device: str) -> Tensor:
    """int32 [N]: in turns while decoding, in runs within prompts."""
    token = torch.arange(case.N, device=device)
    slot = token % case.S if case.N <= DECODE_TOKENS else token * case.S // case.N
    return slot.int()


def bank_of(case: Case, weights: Weights) -> ss.Bank:
    """S plans, the same as ``weights.plans``."""
    n = case.S * case.M
    rows = slice(n)
    sae = ss.SAE(
        W_enc=weights.encoder[rows].float().T,
        W_dec=weights.decoder[rows].float(),
        b_enc=torch.full((n,), BIAS, device=weights.encoder.device),
        activation=ss.JumpReLU(THRESHOLD),
    )
    bank = ss.Bank(sae, capacity=n, slots=case.S)
    for first in range(0, n, case.M):
        bank.add(sae.plan(ss.Edit.set(dict.fromkeys(range(first, first + case.M), VALUE))))
    return bank


def by_slot(plans: list[SteeringPlan], h: Tensor, slot: Tensor, case: Case) -> gate.Edited:
    """What every token's own plan must give."""
    parts = []
    for s, plan in enumerate(plans):
        chosen = (slot == s).nonzero()[:, 0]
        part = gate.edited_rows(plan, h[chosen], case)
        parts.append((chosen[part.tokens], part.want))
    tokens, want = (torch.cat(column) for column in zip(*parts, strict=True))
    return gate.Edited(case, tokens, want, h)


def slot_loop(
    plans: list[SteeringPlan], steer: Callable[[SteeringPlan], competitors.Transform]
) -> Callable[[Tensor, Tensor], Tensor]:
    """One way to steer after the other, each on the tokens of its slot."""
    ways = [steer(plan) for plan in plans]

    def way(h: Tensor, slot: Tensor) -> Tensor:
        out = h.clone()
        for s, transform in enumerate(ways):
            chosen = (slot == s).nonzero()[:, 0]
            out.index_copy_(0, chosen, transform(h[chosen]))
        return out

    return way


def token_bmm(plans: list[SteeringPlan]) -> Callable[[Tensor, Tensor], Tensor]:
    """The rows of each token's plan copied out of a table [S, M, D], then two batched products."""
    encoder, decoder = (torch.stack([getattr(plan, name) for plan in plans]) for name in ("encoder", "decoder"))

    def way(h: Tensor, slot: Tensor) -> Tensor:
        x, chosen = h.to(encoder.dtype), slot.long()
        z = torch.baddbmm(x.new_tensor(BIAS), encoder[chosen], x[..., None])
        d = (z > THRESHOLD).mul(z).neg_().add_(VALUE)
        return torch.baddbmm(x[:, None], d.mT, decoder[chosen])[:, 0].to(h.dtype)

    return way


BENCH = Bench("steer_slots", cases, races, (SLOT_LOOP, TOKEN_BMM, STEER_LOOP))


def test_steer_slots(benchmark, contender):
    """For pytest-benchmark, which times each competitor alone."""
    benchmark(contender)


if __name__ == "__main__":
    sys.exit(harness.main(BENCH))
