"""Which tokens are steered: from what the user says to a strength for every token of a forward call."""

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from sparsesteer.model.chat_templates import TemplateTokens
from sparsesteer.model.forward_calls import ForwardCall

Positions = str | int | slice | Sequence[int] | Tensor
Choice = Tensor | bool  # bool [B or 1, T], or one answer for all tokens
Selector = Callable[[ForwardCall], Choice]
Exclusion = Callable[[ForwardCall], Tensor]

NAMES = ("all", "prompt", "last_prompt", "generated")


def selector(positions: Positions) -> Selector:
    """The function that picks a call's tokens, padding not yet taken out; see ``steer`` for the meaning.

    Raises:
        TypeError, ValueError: positions that are none of the known kinds.
    """
    if isinstance(positions, str):
        if positions not in NAMES:
            raise ValueError(f"positions should be {', '.join(NAMES)}, a mask, indices or a slice, got {positions!r}")
        return {"all": every_token, "prompt": _prompt, "last_prompt": _last_prompt, "generated": _generated}[positions]
    if isinstance(positions, slice):
        return _slice_selector(positions)
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        if positions.dim() != 2:
            raise ValueError(f"positions: a mask should have shape [B, T], got {list(positions.shape)}")
        return lambda call: columns_of_prompt(positions, call, "the positions mask") != 0
    return _index_selector(_indices(positions))


def exclusion(tokens: object) -> Exclusion | None:
    """The function that picks a call's tokens that are left alone, bool [B, T]; None for None.

    Args:
        tokens: token ids, a tokenizer, for its ``all_special_ids``, or ``template_tokens``.

    Raises:
        TypeError: anything else.
    """
    if tokens is None:
        return None
    if isinstance(tokens, TemplateTokens):
        return lambda call: _are_among(call, tokens.special_ids) | _of_template(call, tokens)
    ids = special_token_ids(tokens)
    return lambda call: _are_among(call, ids)


def special_token_ids(tokens: object) -> Tensor:
    """Token ids [n] from ids, or from a tokenizer's ``all_special_ids``."""
    ids = getattr(tokens, "all_special_ids", tokens)
    if isinstance(ids, Tensor):
        ids = ids.flatten().tolist()
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise TypeError(f"exclude_special_tokens should be token ids or a tokenizer, got {tokens!r}")
    ids = list(ids)
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, Integral):
            raise TypeError(f"exclude_special_tokens should be token ids or a tokenizer, got the item {token!r}")
    return torch.tensor([int(token) for token in ids], dtype=torch.int64)


def check_strength(strength: object) -> float | Tensor:
    """A finite number, or a tensor with no dimension, [B] or [B, T].

    Raises:
        TypeError, ValueError: anything else.
    """
    if isinstance(strength, Tensor):
        if strength.dim() > 2 or not strength.is_floating_point():
            raise ValueError(
                f"strength should be a number or a floating-point tensor [B] or [B, T], "
                f"got {strength.dtype} {list(strength.shape)}"
            )
        return strength
    if isinstance(strength, bool) or not isinstance(strength, Real):
        raise TypeError(f"strength should be a number or a tensor, got {strength!r}")
    number = float(strength)
    if not math.isfinite(number):
        raise ValueError(f"strength should be finite, got {number}")
    return number


def token_strengths(
    call: ForwardCall, select: Selector, strength: float | Tensor, excluded: Exclusion | None
) -> float | Tensor:
    """What each token of the call is steered by: one number, or [B, T] with 0 where a token is left alone."""
    if call.may_be_candidates and select is not every_token:
        raise ValueError(
            "steer: this decoder got several tokens behind cached ones; models with an encoder do not tell which of "
            "them are candidates, so use positions='all', or generate without assistance"
        )
    chosen = select(call)
    if chosen is False:
        return 0.0
    for wanted in (call.valid, None if excluded is None else ~excluded(call)):
        if wanted is not None:
            chosen = wanted if chosen is True else chosen & wanted
    if chosen is True:
        return strength if isinstance(strength, float) else _strength_table(strength, call)
    if isinstance(strength, float):
        return chosen.expand(call.shape) * strength
    table = _strength_table(strength, call)
    return torch.where(chosen, table, table.new_zeros(()))


def columns_of_prompt(table: Tensor, call: ForwardCall, what: str) -> Tensor:
    """A table [B, T] over the prompt, laid on the call's tokens: 0 for generated ones, rows repeated for beams."""
    table = rows_for(table.to(call.tokens.device), call, what)
    n_rows, n_tokens = call.shape
    if call.n_prompt == 0:
        return table.new_zeros(1, 1).expand(n_rows, n_tokens)
    if table.shape[1] != call.n_prompt:
        raise ValueError(
            f"steer: {what} has {table.shape[1]} columns, but this prompt has {call.n_prompt} tokens a row "
            "(padding counted); enter a steering of its own for each prompt"
        )
    return torch.nn.functional.pad(table, (0, n_tokens - call.n_prompt))


def rows_for(table: Tensor, call: ForwardCall, what: str) -> Tensor:
    """One row for each row of the call: beams and returned sequences are neighbours that share their prompt's."""
    n_rows = call.shape[0]
    if table.shape[0] == 0 or n_rows % table.shape[0]:
        raise ValueError(f"steer: {what} has {table.shape[0]} rows, but this call has {n_rows}")
    return table if table.shape[0] == n_rows else table.repeat_interleave(n_rows // table.shape[0], 0)


def _strength_table(strength: Tensor, call: ForwardCall) -> Tensor:
    if strength.dim() == 2:
        return columns_of_prompt(strength, call, "strength")
    rows = rows_for(strength.to(call.tokens.device).reshape(-1), call, "strength")
    return rows[:, None].expand(call.shape)


def _ids(call: ForwardCall) -> Tensor:
    if call.ids is None:
        raise ValueError("steer: exclude_special_tokens needs a call with input_ids, this one has embeddings")
    return call.ids


def _are_among(call: ForwardCall, ids: Tensor) -> Tensor:
    return torch.isin(_ids(call), ids.to(call.tokens.device))


def _of_template(call: ForwardCall, template: TemplateTokens) -> Tensor:
    """The call's tokens that the template added; nothing of what is generated."""
    entering = _ids(call)[:, : call.n_prompt]
    end = call.n_cached + call.n_prompt
    ids = rows_for(template.ids[:, call.n_cached : end].to(entering.device), call, "the conversation of the template")
    if ids.shape != entering.shape or not torch.equal(ids, entering):
        raise ValueError(
            "steer: this prompt is not the conversation that template_tokens was given; make them of the same "
            "messages and options, and enter a steering of its own for each conversation"
        )
    mask = rows_for(template.mask[:, call.n_cached : end].to(entering.device), call, "the template")
    return torch.nn.functional.pad(mask, (0, call.shape[1] - call.n_prompt))


def every_token(call: ForwardCall) -> Choice:
    """Positions "all"."""
    return True


def _prompt(call: ForwardCall) -> Choice:
    if call.n_prompt in (0, call.shape[1]):
        return call.n_prompt > 0
    return call.in_prompt


def _generated(call: ForwardCall) -> Choice:
    choice = _prompt(call)
    return not choice if isinstance(choice, bool) else ~choice


def _last_prompt(call: ForwardCall) -> Choice:
    if call.n_prompt == 0:
        return False
    _check_end_is_known(call, "'last_prompt'")
    return (call.ranks == call.prompt_lengths - 1) & call.in_prompt


def _index_selector(indices: list[int]) -> Selector:
    def select(call: ForwardCall) -> Choice:
        if call.n_prompt == 0:
            return False
        if any(i < 0 for i in indices):
            _check_end_is_known(call, "a negative index")
        lengths = call.prompt_lengths
        shortest = int(lengths.min())
        for i in indices:
            if not -shortest <= i < shortest:
                raise ValueError(f"positions: index {i} is outside a prompt of {shortest} tokens")
        places = torch.tensor(indices, device=lengths.device)
        places = torch.where(places < 0, places + lengths, places)  # [B or 1, n]
        return (call.ranks[..., None] == places[:, None]).any(-1) & call.in_prompt

    return select


def _slice_selector(positions: slice) -> Selector:
    start, stop, step = positions.start, positions.stop, positions.step
    if step not in (None, 1):
        raise ValueError(f"positions: a slice has no step here, got {positions}; give indices")
    for bound in (start, stop):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, Integral)):
            raise TypeError(f"positions: a slice is of whole numbers, got {positions}")
    from_end = any(bound is not None and bound < 0 for bound in (start, stop))

    def select(call: ForwardCall) -> Choice:
        if call.n_prompt == 0 and (stop is not None or start is None or start <= 0):
            return stop is None
        if from_end:
            _check_end_is_known(call, "a slice with a negative bound")
        chosen = torch.ones_like(call.ranks, dtype=torch.bool)
        if start is not None:
            chosen = call.ranks >= (start if start >= 0 else call.prompt_lengths + start)
        if stop is not None:
            chosen = chosen & (call.ranks < (stop if stop >= 0 else call.prompt_lengths + stop)) & call.in_prompt
        return chosen

    return select


def _indices(positions: object) -> list[int]:
    if isinstance(positions, Tensor) and not positions.is_floating_point() and positions.dim() <= 1:
        positions = positions.tolist()
    if isinstance(positions, Integral):
        positions = [positions]
    items = list(positions) if isinstance(positions, Iterable) else [positions]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, Integral):
            raise TypeError(
                f"positions should be {', '.join(NAMES)}, a bool tensor [B, T], whole numbers or a slice, "
                f"got {item!r} in {type(positions).__name__}"
            )
    return [int(item) for item in items]  # type: ignore[arg-type]


def _check_end_is_known(call: ForwardCall, what: str) -> None:
    if call.prompt_goes_on:
        raise ValueError(
            f"steer: {what} counts from the prompt's end, but this prompt came in several forward calls; "
            "give it in one call (no prefill_chunk_size), or count from its beginning with a slice"
        )
