"""Texts to tokens, and rows of them ready for batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from halfback.data.batches import Split
from halfback.data.options import Objective
from halfback.data.prompts import check_template, encode_prompts, encode_rows, fill, generation_template
from halfback.data.tasks import RawSplit, RawTask
from halfback.errors import RowError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """One input of a generation task as its model reads it, and all that people wrote for it."""

    tokens: list[int]
    references: list[str]


@dataclass(frozen=True)
class EncodedTask:
    """Both splits, ready for batches; `metric` names what it is scored by.

    `own_loss`: (logits, labels) → mean loss, a scalar, and `own_metric`: (logits, labels) of all validation rows →
    number, more is better, where somebody gave them in the places of the objective's.
    `prompts`: the different validation inputs of a generation task, in the order of their first rows.
    `has_pairs`: rows are pairs of texts.
    """

    train: Split
    validation: Split
    objective: Objective
    label_names: list[str]
    metric: str
    prompts: tuple[Prompt, ...] = ()
    own_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    own_metric: Callable[[Tensor, Tensor], float] | None = None
    has_pairs: bool = False


def metric_of(objective: Objective) -> str:
    """The name of what a task is scored by."""
    return "accuracy" if objective == "classification" else "perplexity"


def encode(
    task: RawTask,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    max_length: int,
    template: str | None,
    continued: bool = False,
) -> EncodedTask:
    """Tokenise every text once; images pass as they are (`tokenizer` may be None for them).

    `template`, such as "{text} It was", is filled with the row's text and pair before tokenising. Rows longer than
    `max_length` tokens lose their end (where the tokenizer truncates as usual), but with a template their beginning, so
    that the prompt's last words stay; generation has rules of its own, see `encode_rows`. `continued`: what counts is
    the word after the template, so nothing that the tokenizer puts behind a text is. UserError for a template
    without {text}, or without {pair} where rows are pairs, and for a `max_length` that leaves no room beside the
    special tokens.
    """
    metric = metric_of(task.objective)
    if task.train.images is not None:
        train, validation = (Split(raw.labels, images=raw.images) for raw in (task.train, task.validation))
        return EncodedTask(train, validation, task.objective, task.label_names, metric)
    if tokenizer is None:
        raise ValueError(f"task {task.name!r} has texts: encode needs a tokenizer")
    if task.objective == "generation":
        return _encode_generation(task, tokenizer, max_length, template)
    # Below this the tokenizer would silently not truncate at all.
    least = tokenizer.num_special_tokens_to_add(pair=template is None and task.train.pairs is not None) + 1
    if max_length < least:
        raise UserError(f"task.max_length={max_length} must be at least {least} tokens for this tokenizer")
    if template is not None:
        check_template(template, has_pairs=task.train.pairs is not None)
    # A copy, because tokenizers keep the truncation they were last called with.
    tokenizer = copy.deepcopy(tokenizer)
    if template is not None:
        tokenizer.truncation_side = "left"
    causal = task.objective == "causal_lm"
    train, validation = (
        _encode_split(raw, tokenizer, max_length, template, causal, continued) for raw in (task.train, task.validation)
    )
    pairs = task.train.pairs is not None
    return EncodedTask(train, validation, task.objective, task.label_names, metric, has_pairs=pairs)


def verbaliser_ids(words: Sequence[str] | None, tokenizer: PreTrainedTokenizerBase | None) -> list[int] | None:
    """For each class its word's first token as it follows other text; None without words, or for images.

    Raises:
        UserError: two classes share one, or a word has none.
    """
    if words is None or tokenizer is None:
        return None
    # Behind a word: " great" alone would give some tokenizers a second blank, and others none.
    before = tokenizer("was", add_special_tokens=False)["input_ids"]
    ids: dict[int, str] = {}
    for word in words:
        if not word.strip():
            raise UserError(f"verbaliser word {word!r} is blank")
        tokens = tokenizer(f"was {word.strip()}", add_special_tokens=False)["input_ids"]
        if tokens[: len(before)] != before or len(tokens) == len(before):
            raise UserError(f"verbaliser word {word!r} has no token of its own for this tokenizer")
        first = tokens[len(before)]
        if first == tokenizer.unk_token_id:
            raise UserError(f"verbaliser word {word!r} is unknown to this tokenizer")
        if first in ids:
            raise UserError(f"verbaliser words {ids[first]!r} and {word!r} start with the same token; choose others")
        ids[first] = word
    return list(ids)


def _encode_split(
    raw: RawSplit,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    template: str | None,
    causal: bool,
    continued: bool,
) -> Split:
    texts, pairs = raw.texts, raw.pairs
    assert texts is not None
    if template is not None:
        texts = fill(template, texts, pairs)
        pairs = None
    encoded: Any = tokenizer(texts, pairs, truncation=True, max_length=max_length) if texts else {"input_ids": []}
    tokens: list[list[int]] = encoded["input_ids"]
    if continued:
        tokens = encode_prompts(texts, tokenizer, max_length)
    for text, row in zip(texts, tokens, strict=True):
        if not row:
            raise RowError(f"the text {text[:40]!r} has no tokens for this tokenizer")
    if causal and texts and max(map(len, tokens)) < 2:
        raise UserError("task.objective=causal_lm: no text has a second token, so there is nothing to predict")
    return Split(
        raw.labels,
        tokens=tokens,
        token_types=encoded.get("token_type_ids") if pairs is not None else None,
        # Nothing is before a row's first token that could tell of it.
        unscored=[1] * len(tokens) if causal else None,
    )


def _encode_generation(
    task: RawTask, tokenizer: PreTrainedTokenizerBase, max_length: int, template: str | None
) -> EncodedTask:
    has_pairs = task.train.pairs is not None
    template = generation_template(template, has_pairs=has_pairs)
    check_template(template, has_pairs=has_pairs)
    splits = []
    for raw in (task.train, task.validation):
        assert raw.texts is not None
        assert raw.targets is not None
        prompts = fill(template, raw.texts, raw.pairs)
        tokens, unscored = encode_rows(prompts, raw.targets, tokenizer, max_length)
        splits.append(Split(raw.labels, tokens=tokens, unscored=unscored))
    different = dict(zip(prompts, raw.references or [], strict=True))
    encoded = encode_prompts(list(different), tokenizer, max_length)
    found = tuple(Prompt(row, written) for row, written in zip(encoded, different.values(), strict=True))
    return EncodedTask(splits[0], splits[1], task.objective, [], "perplexity", found, has_pairs=has_pairs)
