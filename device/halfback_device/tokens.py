"""Texts to tokens with the package's tokenizer, as the reference encodes them (halfback/data/encode.py and prompts.py).

A package says in its manifest how (`task.texts`):

* `max_length`: the most tokens of a row; `longest`: the most that the model has positions for, or null.
* `template`, such as "{text} It was", filled with a row's text and pair, or null; for generation never null.
* `pair`: whether rows are pairs of texts. `types`: whether the model is told which token is of which.
* `continued`: the word behind the template counts, so nothing that the tokenizer puts behind a text is there.
* `side`: the side on which a row that is too long loses tokens, "left" or "right".
* `end`: the token that ends a text to generate, or null. `split_special`: special tokens in a text are plain text.
* `tokens`: how many the model has an embedding for.
"""

import string
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, final

import numpy as np
from tokenizers import Tokenizer

from halfback_device.batches import Ragged
from halfback_device.errors import PackageError
from halfback_device.tables import RowError

_WORD = "was"  # any word that tokenizers know
_AT_ONCE = 512  # texts that are tokenised together: the runtime's own form of a row is large


@final
class Encoder:
    """A package's tokenizer, and how it is used."""

    def __init__(self, file: Path, how: Mapping[str, Any]) -> None:
        """`file`: the tokenizer's; `how`: the manifest's `task.texts`; PackageError where the file is none."""
        with _of_package(f"{file.name} of the package can't be read"):
            self._tokenizer = Tokenizer.from_file(str(file))
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self._tokenizer.encode_special_tokens = how["split_special"]
        self._how = how
        self._word = self._bare([_WORD])[0]
        (whole,) = self._found([_WORD])
        if self._word[0] not in whole.ids:
            raise PackageError(f"{file.name} of the package leaves nothing of the word {_WORD!r}")
        # What stands before every text; tokens behind it would end a prompt before its continuation.
        self._first = whole.ids[: whole.ids.index(self._word[0])]

    def rows(self, texts: Sequence[str], pairs: Sequence[str] | None) -> tuple[Ragged, Ragged | None]:
        """Tokens and, where the model has them, token types of each row of a classification or language modelling task.

        Raises:
            RowError: a text has no tokens, or more than the model has positions for.
            PackageError: the longest row leaves no room beside the special tokens.
        """
        how = self._how
        template, longest = how["template"], how["max_length"]
        with _of_package("the package's tokenizer can't count its special tokens"):
            special = self._tokenizer.num_special_tokens_to_add(template is None and pairs is not None)
        if longest <= special:
            raise PackageError(f"task.max_length={longest} of the package leaves no room beside special tokens")
        if template is not None:
            texts, pairs = filled(template, texts, pairs), None
        if how["continued"]:
            return self._checked(texts, self._prompts(texts)), None
        side = "left" if template is not None else how["side"]
        self._tokenizer.enable_truncation(longest, direction=side)
        try:
            types: list[array[int]] | None = None if pairs is None or not how["types"] else []
            found = self._checked(texts, self._encoded(texts, pairs, types))
            return found, None if types is None else Ragged(types)
        finally:
            self._tokenizer.no_truncation()

    def continuations(
        self, texts: Sequence[str], pairs: Sequence[str] | None, targets: Sequence[str]
    ) -> tuple[Ragged, np.ndarray]:
        """Rows of prompt, target and end of text, and how many tokens of each are prompt, (n,) int64.

        A row that is too long loses the beginning of its prompt, down to one token; if that is not enough, it loses the
        end of its target, and with it the end of text.

        Raises:
            RowError: a text or a target has no tokens, or the tokenizer joins a target to what stands before it.
            PackageError: there is no end of text, or no room for one token of each.
        """
        first, longest, end = self._first, self._how["max_length"], self._how["end"]
        if end is None or longest < len(first) + 2:
            raise PackageError("the package's tokenizer has no end of text, or its rows no room for a target")
        prompts = filled(self._how["template"], texts, pairs)
        unscored: list[int] = []

        def rows() -> Iterator[list[int]]:
            for prompt, target in zip(self._each_bare(prompts), self._followers(prompts, targets), strict=True):
                kept = [*target, end][: longest - len(first) - 1]
                start = first + _last(prompt, longest - len(first) - len(kept))
                unscored.append(len(start))
                yield start + kept

        found = self._checked(prompts, rows())
        return found, np.array(unscored, dtype=np.int64)

    def _checked(self, texts: Sequence[str], rows: Iterator[list[int]]) -> Ragged:
        known, longest = self._how["tokens"], self._how["longest"]

        def checked() -> Iterator[list[int]]:
            for text, row in zip(texts, rows, strict=True):
                if not row:
                    raise RowError(f"the text {text[:40]!r} has no tokens for the package's tokenizer")
                if longest is not None and len(row) > longest:
                    raise RowError(f"the text {text[:40]!r} has {len(row)} tokens, the model takes {longest}")
                if max(row) >= known:
                    raise RowError(f"the text {text[:40]!r} has token {max(row)}, the model has {known}")
                yield row

        return Ragged(checked())

    def _prompts(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """What the tokenizer puts before every text stays; what it puts behind is left out."""
        room = self._how["max_length"] - len(self._first)
        return (self._first + _last(row, room) for row in self._each_bare(texts))

    def _encoded(
        self, texts: Sequence[str], pairs: Sequence[str] | None, types: "list[array[int]] | None"
    ) -> Iterator[list[int]]:
        """Tokens of each row; what types they have comes behind those in `types`, unless that is None."""
        rows: Iterator[Any] = iter(texts if pairs is None else zip(texts, pairs, strict=True))
        while chunk := list(islice(rows, _AT_ONCE)):
            for found in self._found(chunk):
                if types is not None:
                    types.append(array("i", found.type_ids))
                yield found.ids

    def _each_bare(self, texts: Sequence[str]) -> Iterator[list[int]]:
        for begin in range(0, len(texts), _AT_ONCE):
            yield from self._bare(texts[begin : begin + _AT_ONCE])

    def _bare(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens without special ones. RowError for a text that has none."""
        rows = [found.ids for found in self._found(list(texts), add_special_tokens=False)]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise RowError(f"the text {text[:40]!r} has no tokens for the package's tokenizer")
        return rows

    def _found(self, texts: list[Any], *, add_special_tokens: bool = True) -> list[Any]:
        """What the library makes of texts, or of pairs of them."""
        with _of_package("the package's tokenizer can't encode a text"):
            found: list[Any] = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
            return found

    def _followers(self, prompts: Sequence[str], targets: Sequence[str]) -> Iterator[list[int]]:
        """Tokens of each target as they follow its prompt, whose own tokens are those that it has alone."""
        # Behind a word: " The" alone would give some tokenizers a second blank, and others none.
        behind = self._each_bare([f"{_WORD} {target.strip()}" for target in targets])
        alone = self._each_bare([target.strip() for target in targets])
        for prompt, row, bare in zip(prompts, behind, alone, strict=True):
            if row[: len(self._word)] != self._word:
                raise RowError("the package's tokenizer joins words, so nothing can be generated with it")
            yield bare if prompt[-1:].isspace() else row[len(self._word) :]


@contextmanager
def _of_package(what: str) -> Iterator[None]:
    """Says in one line what the library can't do with a package's file, without its words, which may quote a text.

    It has no errors of its own kind, and its panics aren't even an `Exception`.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise PackageError(f"{what} ({type(error).__name__})") from None


def filled(template: str, texts: Sequence[str], pairs: Sequence[str] | None) -> list[str]:
    """The template with each text, and its pair, in place; PackageError for one that asks for anything else."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PackageError(f"task.template={template!r} of the package is malformed: {error}") from None
    fields = {field for _, field, _, _ in parts if field is not None}
    if any(form or conversion for _, _, form, conversion in parts) or not fields <= {"text", "pair"}:
        raise PackageError(f"task.template={template!r} of the package may name text and pair, and nothing else")
    return [template.format(text=text, pair=pair) for text, pair in zip(texts, pairs or [""] * len(texts), strict=True)]


def _last(row: list[int], count: int) -> list[int]:
    return row[max(len(row) - count, 0) :]
