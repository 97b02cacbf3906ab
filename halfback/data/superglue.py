"""Four tasks of SuperGLUE with 32 training rows (FewGLUE's) and the full validation split.

A row is a text and a pair. Ours: WiC's word stands before its first sentence, WSC's pronoun between asterisks.
"""

from __future__ import annotations

import json
from dataclasses import replace

from halfback.data import loaders
from halfback.data.sources import Columns, column_of
from halfback.data.tables import Table
from halfback.errors import RowError

_TRUTH = ["False", "True"]
_PUNCTUATION = ".,;:!?'\"()"


def _word_before_sentence(table: Table) -> Table:
    rows = zip(column_of(table, "word"), column_of(table, "sentence1"), strict=True)
    return replace(table, columns=dict(table.columns) | {"text": [f"{word}: {sentence}" for word, sentence in rows]})


def _pronoun_and_candidate(table: Table) -> Table:
    targets = [json.loads(str(target)) for target in column_of(table, "target")]
    texts = [_marked(str(text), target) for text, target in zip(column_of(table, "text"), targets, strict=True)]
    made = {"text": texts, "candidate": [target["span1_text"] for target in targets]}
    return replace(table, columns=dict(table.columns) | made)


def _marked(text: str, target: dict[str, str | int]) -> str:
    words, pronoun, said = text.split(), str(target["span2_text"]), int(target["span2_index"])
    places = [n for n, word in enumerate(words) if _bare(word) == _bare(pronoun)]
    if not places:
        raise RowError(f"wsc: the pronoun {pronoun!r} is not a word of {text[:40]!r}")
    # In one validation row the number is that of the word before.
    place = min(places, key=lambda n: abs(n - said))
    written = words[place].strip(_PUNCTUATION)
    words[place] = words[place].replace(written, f"*{written}*")
    return " ".join(words)


def _bare(word: str) -> str:
    return word.strip(_PUNCTUATION).lower()


boolq = loaders.text_files(
    "superglue_fewshot/boolq", None, Columns("passage", "question"), names=_TRUTH, train_file="train32"
)
cb = loaders.text_files(
    "superglue_fewshot/cb",
    None,
    Columns("premise", "hypothesis"),
    names=["entailment", "contradiction", "neutral"],
    train_file="train32",
)
wic = loaders.text_files(
    "superglue_fewshot/wic",
    None,
    Columns("text", "sentence2"),
    names=_TRUTH,
    train_file="train32",
    reshape=_word_before_sentence,
)
# Its train32 has rows of one class alone, which teach a classifier nothing; dev32 has 32 other rows of both.
wsc = loaders.text_files(
    "superglue_fewshot/wsc",
    None,
    Columns("text", "candidate"),
    names=_TRUTH,
    train_file="dev32",
    reshape=_pronoun_and_candidate,
)
