"""Which tokens are steered, against a decoding loop by hand: one row, no padding, no cache, positions spelled out."""

import models
import pytest
import torch
from models import PAD, VOCABULARY, plan, prompts
from transformers import DynamicCache

import sparsesteer as ss

pytestmark = pytest.mark.usefixtures("one_thread")

N_NEW = 5
LENGTHS = (4, 7)  # of the two prompts
SITE = 1

# positions -> is the token at place p of a sequence with a prompt of n tokens steered?
CASES = {
    "all": ("all", lambda p, n: True),
    "prompt": ("prompt", lambda p, n: p < n),
    "last_prompt": ("last_prompt", lambda p, n: p == n - 1),
    "generated": ("generated", lambda p, n: p >= n),
    "indices": ([0, -2], lambda p, n: p in (0, n - 2)),
    "one_index": (-1, lambda p, n: p == n - 1),
    "index_tensor": (torch.tensor([1, 3]), lambda p, n: p in (1, 3)),
    "slice_open": (slice(2, None), lambda p, n: p >= 2),
    "slice_from_end": (slice(-3, None), lambda p, n: p >= n - 3),
    "slice_past_prompt": (slice(9, None), lambda p, n: p >= 9),
    "slice_closed": (slice(1, -1), lambda p, n: 1 <= p < n - 1),
    "slice_beyond": (slice(2, 6), lambda p, n: 2 <= p < min(6, n)),
    "whole_slice": (slice(None), lambda p, n: True),
}
FROM_END = ("last_prompt", "indices", "one_index", "slice_from_end", "slice_closed")
IN_CHUNKS = [case for case in CASES if case not in (*FROM_END, "index_tensor")]


@pytest.fixture(scope="module", params=tuple(models.BLOCKS))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return endless(models.build(family))


@pytest.fixture(scope="module")
def llama():
    return endless(models.llama())


def endless(model):
    model.generation_config.eos_token_id = None
    return model


def site_module(model):
    paths = [f"{blocks}.{SITE}" for blocks in (*models.BLOCKS.values(), "backbone.layers")]
    return next(module for path, module in model.named_modules() if path in paths)


def rows():
    return [prompts(1, n, seed=n) for n in LENGTHS]


def padded(side):
    """(ids, attention_mask) of both prompts, and one column of padding more than they need."""
    width = max(LENGTHS) + 1
    ids, mask = torch.full((2, width), PAD), torch.zeros(2, width, dtype=torch.int64)
    for i, row in enumerate(rows()):
        columns = slice(width - row.shape[1], None) if side == "left" else slice(0, row.shape[1])
        ids[i, columns], mask[i, columns] = row[0], 1
    return ids, mask


@torch.no_grad()
def logits_by_hand(model, ids, is_steered, strength=1.0):
    """Logits [T, V] of one row where the tokens that ``is_steered`` [T] marks are steered, and only they."""

    def hook(module, args, output):
        h = output if isinstance(output, torch.Tensor) else output[0]
        change = ss.ops.steer(h, plan(), strength) - h
        steered = h + change * is_steered[None, :, None]
        return steered if isinstance(output, torch.Tensor) else (steered, *output[1:])

    handle = site_module(model).register_forward_hook(hook)
    logits = model(ids).logits[0]
    handle.remove()
    return logits


def generate_by_hand(model, prompt, rule):
    """Greedy tokens [N_NEW] and their logits [N_NEW, V]; rule(p, n, token)."""
    ids, n, all_logits = prompt, prompt.shape[1], []
    for _ in range(N_NEW):
        marks = torch.tensor([float(rule(p, n, int(token))) for p, token in enumerate(ids[0])])
        all_logits.append(logits_by_hand(model, ids, marks)[-1])
        ids = torch.cat([ids, all_logits[-1].argmax()[None, None]], dim=1)
    return ids[0, n:], torch.stack(all_logits)


@torch.no_grad()
def generate(model, ids, mask, positions="all", edit=None, **options):
    """Greedy tokens [B, N_NEW] and logits [B, N_NEW, V] of the steered model."""
    extra = {name: options.pop(name) for name in ("strength", "exclude_special_tokens") if name in options}
    with ss.steer(model, {SITE: edit or plan()}, positions=positions, **extra):
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=N_NEW, do_sample=False, return_dict_in_generate=True,
            output_logits=True, **options,
        )  # fmt: skip
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, dim=1)


def assert_as_by_hand(model, got, rule):
    tokens, logits = got
    for i, row in enumerate(rows()):
        by_hand, logits_of_row = generate_by_hand(model, row, lambda p, n, token: rule(p, n))
        torch.testing.assert_close(logits[i], logits_of_row, atol=2e-4, rtol=1e-4)
        assert torch.equal(tokens[i], by_hand)


@pytest.mark.parametrize("case", CASES)
def test_left_padded_generation_with_a_cache(model, case):
    positions, rule = CASES[case]
    assert_as_by_hand(model, generate(model, *padded("left"), positions), rule)


@pytest.mark.parametrize("case", CASES)
def test_left_padded_generation_without_a_cache(llama, case):
    positions, rule = CASES[case]
    assert_as_by_hand(llama, generate(llama, *padded("left"), positions, use_cache=False), rule)


@pytest.mark.parametrize("case", CASES)
def test_left_padded_generation_with_a_static_cache(llama, case):
    positions, rule = CASES[case]
    got = generate(llama, *padded("left"), positions, cache_implementation="static", disable_compile=True)
    assert_as_by_hand(llama, got, rule)


@pytest.mark.parametrize("case", IN_CHUNKS)
def test_prefill_in_chunks(llama, case):
    positions, rule = CASES[case]
    ids, mask = padded("left")
    got = generate(llama, ids, mask, positions, prefill_chunk_size=6, past_key_values=DynamicCache())
    assert_as_by_hand(llama, got, rule)


@pytest.mark.parametrize("case", FROM_END)
def test_prefill_in_chunks_has_no_known_end(llama, case):
    with pytest.raises(ValueError, match="from the prompt's end, but this prompt came in several forward calls"):
        generate(llama, *padded("left"), CASES[case][0], prefill_chunk_size=6, past_key_values=DynamicCache())


def test_an_index_behind_the_first_chunk_is_refused(llama):
    with pytest.raises(ValueError, match="index 3 is outside a prompt of 2 tokens"):
        generate(llama, *padded("left"), [3], prefill_chunk_size=6, past_key_values=DynamicCache())


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_padded_prompts_equal_prompts_alone(model, side, case):
    positions, rule = CASES[case]
    ids, mask = padded(side)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with ss.steer(model, {SITE: plan()}, positions=positions):
        logits = model(ids, attention_mask=mask, position_ids=places).logits
    for i, row in enumerate(rows()):
        n = row.shape[1]
        marks = torch.tensor([float(rule(p, n)) for p in range(n)])
        torch.testing.assert_close(logits[i][mask[i] == 1], logits_by_hand(model, row, marks), atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_every_other_token_keeps_its_bits_at_the_site(llama, side, case):
    positions, rule = CASES[case]
    ids, mask = padded(side)
    inputs = {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}
    before = llama(**inputs).hidden_states[SITE + 1]
    with ss.steer(llama, {SITE: plan()}, positions=positions):
        after = llama(**inputs).hidden_states[SITE + 1]
    places = mask.cumsum(1) - 1
    lengths = mask.sum(1)
    expected = [
        [bool(mask[i, t]) and rule(int(places[i, t]), int(lengths[i])) for t in range(ids.shape[1])] for i in range(2)
    ]
    assert (before != after).any(-1).tolist() == expected


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_cache_fed_by_hand(llama, case):
    """The prompt, then single tokens, as a loop of one's own calls the model."""
    positions, rule = CASES[case]
    prompt = rows()[1]
    tokens, logits = generate_by_hand(llama, prompt, lambda p, n, token: rule(p, n))
    cache = DynamicCache()
    with ss.steer(llama, {SITE: plan()}, positions=positions):
        got = [llama(prompt, past_key_values=cache).logits[0, -1]]
        got += [llama(token[None, None], past_key_values=cache).logits[0, -1] for token in tokens[:-1]]
    torch.testing.assert_close(torch.stack(got), logits, atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_right_padded_prompts_go_on_in_a_cache(llama, case):
    """Tokens behind the padding, as a loop of one's own feeds them."""
    positions, rule = CASES[case]
    ids, mask = padded("right")
    by_hand = [generate_by_hand(llama, row, lambda p, n, token: rule(p, n)) for row in rows()]
    cache, places = DynamicCache(), mask.cumsum(1) - 1
    with ss.steer(llama, {SITE: plan()}, positions=positions):
        logits = llama(ids, attention_mask=mask, position_ids=places.clamp(min=0), past_key_values=cache).logits
        got = [logits[torch.arange(2), mask.sum(1) - 1]]
        for step in range(N_NEW - 1):
            tokens = torch.stack([generated[step] for generated, _ in by_hand])[:, None]
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            places = mask.cumsum(1)[:, -1:] - 1
            call = dict(attention_mask=mask, position_ids=places, past_key_values=cache)
            got.append(llama(tokens, **call).logits[:, -1])
    expected = torch.stack([logits for _, logits in by_hand])
    torch.testing.assert_close(torch.stack(got, dim=1), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_mask_over_the_padded_prompt(llama, use_cache):
    ids, mask = padded("left")
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    tokens, logits = generate(llama, ids, mask, chosen, use_cache=use_cache)
    for i, row in enumerate(rows()):
        marks = chosen[i, mask[i] == 1]
        by_hand = generate_by_hand(llama, row, lambda p, n, token, marks=marks: p < n and marks[p])
        torch.testing.assert_close(logits[i], by_hand[1], atol=2e-4, rtol=1e-4)
        assert torch.equal(tokens[i], by_hand[0])


@pytest.mark.parametrize("use_cache", [True, False])
def test_special_tokens_are_left_alone(llama, use_cache):
    special = [int(rows()[0][0, 1]), int(rows()[1][0, 2]), *range(20, VOCABULARY)]
    tokenizer = type("Tokenizer", (), {"all_special_ids": special})()
    for given in (special, tokenizer, torch.tensor(special), iter(special)):
        tokens, logits = generate(llama, *padded("left"), exclude_special_tokens=given, use_cache=use_cache)
        for i, row in enumerate(rows()):
            by_hand = generate_by_hand(llama, row, lambda p, n, token: token not in special)
            torch.testing.assert_close(logits[i], by_hand[1], atol=2e-4, rtol=1e-4)
            assert torch.equal(tokens[i], by_hand[0])


@torch.no_grad()
def test_a_strength_for_each_row_and_for_each_token(llama):
    ids, mask = padded("left")
    per_token = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0))
    for strength in (torch.tensor([0.5, 2.0]), per_token, torch.tensor(1.5)):
        with ss.steer(llama, {SITE: plan()}, strength=strength):
            logits = llama(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        table = strength if strength.dim() == 2 else strength.reshape(-1, 1).expand(ids.shape)
        for i, row in enumerate(rows()):
            real = mask[i] == 1
            expected = logits_by_hand(llama, row, table[i][real])
            torch.testing.assert_close(logits[i][real], expected, atol=2e-4, rtol=1e-4)


def test_a_strength_for_each_row_holds_for_generated_tokens(llama):
    for i, strength in enumerate((0.5, 2.0)):
        alone = generate(llama, rows()[i], torch.ones_like(rows()[i]), "generated", strength=strength)
        batch = generate(llama, *padded("left"), "generated", strength=torch.tensor([0.5, 2.0]))
        torch.testing.assert_close(batch[1][i], alone[1][0], atol=2e-4, rtol=1e-4)
        assert torch.equal(batch[0][i], alone[0][0])
