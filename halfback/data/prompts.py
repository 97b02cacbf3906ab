"""Prompts from templates, and the rows that teach a model to continue them: prompt, target, end of text."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from halfback.errors import RowError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORD = "was"  # any word that tokenizers know


def generation_template(template: str | None, *, has_pairs: bool) -> str:
    """The template of a generation task: the user's, else the input and an arrow."""
    if template is None:
        return "{text} {pair} =>" if has_pairs else "{text} =>"
    return template


def check_template(template: str, *, has_pairs: bool) -> None:
    """UserError for a template that is malformed, lacks {text} or {pair}, names another field or ends with a blank."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"task.template={template!r} is malformed: {error}") from error
    fields = {field for _, field, _, _ in parts if field is not None}
    if any(form or conversion for _, _, form, conversion in parts):
        raise UserError(f"task.template={template!r} formats a field; only its name is allowed between braces")
    allowed = {"text", "pair"} if has_pairs else {"text"}
    if unknown := fields - allowed:
        raise UserError(
            f"task.template={template!r} names {{{min(unknown)}}}; allowed here: "
            + ", ".join(f"{{{field}}}" for field in sorted(allowed))
        )
    if missing := allowed - fields:
        raise UserError(f"task.template={template!r} lacks {{{max(missing)}}}")
    if template.endswith(" "):
        raise UserError(f"task.template={template!r} ends with a blank; the next word brings its own")


def fill(template: str, texts: Sequence[str], pairs: Sequence[str] | None) -> list[str]:
    """The template with each text, and its pair, in place."""
    return [template.format(text=text, pair=pair) for text, pair in zip(texts, pairs or [""] * len(texts), strict=True)]


def encode_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[int]]:
    """The tokens of each prompt; one of more than `max_length` tokens loses its beginning.

    What the tokenizer puts before every text (OPT's and Llama's first token) stays; what it puts behind is left out.
    """
    first = first_tokens(tokenizer)
    return [first + _last(row, max_length - len(first)) for row in _bare(prompts, tokenizer)]


def encode_rows(
    prompts: Sequence[str], targets: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[list[int]], list[int]]:
    """Rows of prompt, target and end of text, and how many tokens of each are prompt.

    A row of more than `max_length` tokens loses the beginning of its prompt, down to one token; if that is not enough,
    it loses the end of its target, and with it the end of text. The target follows the prompt behind a blank, or
    directly where the prompt ends with white space. UserError for a `max_length` without room for one token of each,
    and for a tokenizer without an end of text.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("task.objective=generation: this model's tokenizer has no end-of-text token")
    first = first_tokens(tokenizer)
    if max_length < len(first) + 2:
        raise UserError(f"task.max_length={max_length} must be at least {len(first) + 2} tokens for this tokenizer")
    rows, lengths = [], []
    followers = _followers(prompts, targets, tokenizer)
    for prompt, target in zip(_bare(prompts, tokenizer), followers, strict=True):
        kept = [*target, tokenizer.eos_token_id][: max_length - len(first) - 1]
        start = first + _last(prompt, max_length - len(first) - len(kept))
        rows.append(start + kept)
        lengths.append(len(start))
    return rows, lengths


def _last(row: list[int], count: int) -> list[int]:
    return row[max(len(row) - count, 0) :]


def _bare(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokens without special ones. UserError for a text that has none."""
    if not texts:  # of which a tokenizer makes nothing at all
        return []
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise RowError(f"the text {text[:40]!r} has no tokens for this tokenizer")
    return rows


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What stands before every text; tokens behind it would end the prompt before its continuation."""
    whole: list[int] = tokenizer(_WORD)["input_ids"]
    return whole[: whole.index(_bare([_WORD], tokenizer)[0][0])]


def _followers(
    prompts: Sequence[str], targets: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """Tokens of each target as they follow its prompt, whose own tokens are those that it has alone."""
    # Behind a word: " The" alone would give some tokenizers a second blank, and others none.
    word = _bare([_WORD], tokenizer)[0]
    behind = _bare([f"{_WORD} {target.strip()}" for target in targets], tokenizer)
    alone = _bare([target.strip() for target in targets], tokenizer)
    for prompt, row, bare in zip(prompts, behind, alone, strict=True):
        if row[: len(word)] != word:
            raise UserError("task.objective=generation: this model's tokenizer joins words; choose another model")
        yield bare if prompt[-1:].isspace() else row[len(word) :]
