"""Which tokens of a chat are its messages, and which its template added."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Message = Mapping[str, Any]
Span = tuple[int, int]

_MARK = ("\ue000", "\ue001")  # private characters, which no text has


@dataclass(frozen=True, eq=False)
class TemplateTokens:
    """What a chat template adds to conversations; made by ``template_tokens``, taken by ``steer``."""

    ids: Tensor  # int64 [B, T], the conversations as they enter the model
    mask: Tensor  # bool [B, T], True for tokens without a character of a message, padding among them
    special_ids: Tensor  # int64 [n], the tokenizer's


def template_tokens(
    tokenizer: Any,
    messages: Sequence[Message] | Sequence[Sequence[Message]],
    **options: Any,
) -> TemplateTokens:
    """The tokens of a chat that are no message: special tokens, role names, newlines, a default system prompt.

        chat = [{"role": "user", "content": "Tell me a story."}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        template = ss.template_tokens(tokenizer, chat, add_generation_prompt=True)
        with ss.steer(model, plan, exclude_special_tokens=template):
            model.generate(**inputs)

    Args:
        tokenizer: a fast tokenizer with a chat template.
        messages: a conversation, or several, padded as ``apply_chat_template(..., padding=True)`` pads them.
        options: what else ``apply_chat_template`` was given for the template: add_generation_prompt, tools, ...

    A token that holds characters of a message and of the template belongs to the message. ``steer`` also leaves the
    tokenizer's special tokens alone where the model generates them, and raises where another prompt comes.

    Raises:
        ValueError: no messages; a template that rewrites messages, so that they cannot be told from what it adds.
        TypeError: a tokenizer that does not tell which characters a token stands for.
    """
    if not messages:
        raise ValueError("template_tokens: there are no messages")
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(
            f"template_tokens: {type(tokenizer).__name__} does not tell which characters a token stands for; "
            "load the fast tokenizer, of a processor its .tokenizer"
        )
    conversations = [messages] if isinstance(messages[0], Mapping) else messages
    rows = [_ids_and_mask(tokenizer, conversation, options) for conversation in conversations]  # type: ignore[arg-type]
    width = max(len(ids) for ids, _ in rows)
    if any(len(ids) < width for ids, _ in rows) and tokenizer.pad_token_id is None:
        raise ValueError("template_tokens: conversations of several lengths need a tokenizer with a pad token")
    left = tokenizer.padding_side == "left"
    padding = tokenizer.pad_token_id
    return TemplateTokens(
        torch.tensor([_padded(ids, width, padding, left) for ids, _ in rows]),
        torch.tensor([_padded(mask, width, True, left) for _, mask in rows]),
        torch.tensor(tokenizer.all_special_ids, dtype=torch.int64),
    )


def _padded(row: list, width: int, filling: Any, left: bool) -> list:
    rest = [filling] * (width - len(row))
    return rest + row if left else row + rest


def _ids_and_mask(tokenizer: Any, conversation: Sequence[Message], options: dict) -> tuple[list[int], list[bool]]:
    """(token ids, True for those of the template) of one conversation."""
    text = tokenizer.apply_chat_template(conversation, tokenize=False, **options)
    spans = _spans_of_messages(tokenizer, conversation, options, text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [not any(begin < last and first < end for first, last in spans) for begin, end in encoded["offset_mapping"]]
    return list(encoded["input_ids"]), mask


def _spans_of_messages(tokenizer: Any, conversation: Sequence[Message], options: dict, text: str) -> list[Span]:
    """Where the messages stand in the text: the template says the same around them as around marks in their place."""
    marks: list[str] = []
    contents: list[str] = []
    marked = [_with_marks(message, marks, contents) for message in conversation]
    around = tokenizer.apply_chat_template(marked, tokenize=False, **options)
    pieces = re.split("|".join(map(re.escape, marks)), around) if marks else [around]
    spans, at = [], len(pieces[0])
    if re.findall(f"{_MARK[0]}.*?{_MARK[1]}", around) != marks or not text.startswith(pieces[0]):
        raise _rewritten()
    for content, piece in zip(contents, pieces[1:], strict=True):
        written = next((each for each in (content, content.strip()) if text.startswith(each + piece, at)), None)
        if written is None:
            raise _rewritten(content)
        spans.append((at, at + len(written)))
        at += len(written + piece)
    if at != len(text):
        raise _rewritten()
    return spans


def _with_marks(message: Message, marks: list[str], contents: list[str]) -> Message:
    """The message with a mark for each text in it; marks and texts are appended in order."""

    def mark(text: str) -> str:
        marks.append(f"{len(marks)}".join(_MARK))
        contents.append(text)
        return marks[-1]

    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": mark(content)}
    if isinstance(content, list):
        parts = [{**part, "text": mark(part["text"])} if "text" in part else part for part in content]
        return {**message, "content": parts}
    return message


def _rewritten(content: str = "") -> ValueError:
    what = f"the message {content[:40]!r}" if content else "messages"
    return ValueError(
        f"template_tokens: the chat template rewrites or drops {what}, so that their tokens cannot be told from its "
        "own; give positions a mask of your own"
    )
