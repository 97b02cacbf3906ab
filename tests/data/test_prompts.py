"""Rows of prompt, target and end of text, against the tokens of the whole text."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from halfback.data.encode import encode
from halfback.data.prompts import encode_prompts, encode_rows, generation_template
from halfback.data.tasks import RawSplit, RawTask
from halfback.errors import UserError

PROMPTS = ["a film that was =>", "great fun and a film that was good =>"]
TARGETS = ["It was great", "terrible!"]


@pytest.fixture(scope="module")
def llama_tokenizer():
    """As Llama's: a blank is part of the word behind it, also at the beginning; <s> before a text and </s> behind."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator([*PROMPTS, *TARGETS, "was => great!"] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=["decoder_tokenizer", "llama_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def task(texts, targets, pairs=None):
    split = RawSplit(texts, pairs, None, torch.zeros(len(texts)).long(), targets, [[target] for target in targets])
    return RawTask("some", "generation", split, split, [], None)


def whole(tokenizer, text):
    """The tokens of a text without what the tokenizer puts behind it, and with the end of text."""
    tokens = tokenizer(text)["input_ids"]
    return tokens if tokens[-1] == tokenizer.eos_token_id else [*tokens, tokenizer.eos_token_id]


def test_a_row_has_the_tokens_of_prompt_and_target_together(tokenizer):
    rows, lengths = encode_rows(PROMPTS, TARGETS, tokenizer, 99)
    assert rows == [whole(tokenizer, f"{p} {t}") for p, t in zip(PROMPTS, TARGETS, strict=True)]
    assert [row[:n] for row, n in zip(rows, lengths, strict=True)] == encode_prompts(PROMPTS, tokenizer, 99)


def test_behind_a_new_line_the_target_has_no_blank(decoder_tokenizer):
    rows, lengths = encode_rows(["a film\n"], [" great fun "], decoder_tokenizer, 99)
    assert decoder_tokenizer.decode(rows[0]) == "a film\ngreat fun<end>"
    assert decoder_tokenizer.decode(rows[0][lengths[0] :]) == "great fun<end>"


def test_labels_are_the_target_and_the_end_of_text(tokenizer):
    split = encode(task(["a film that was", "great"], TARGETS), tokenizer, max_length=99, template=None).train
    batch = split.batch([0, 1])
    lengths = batch.inputs["lengths"].tolist()
    of_rows = zip(batch.inputs["input_ids"].split(lengths), batch.labels.split(lengths), strict=True)
    for (ids, labels), text, target in zip(of_rows, ["a film that was", "great"], TARGETS, strict=True):
        scored = labels != -100
        expected = whole(tokenizer, f"{text} => {target}")
        prompt = encode_prompts([f"{text} =>"], tokenizer, 99)[0]
        assert labels[scored].tolist() == expected[len(prompt) :]
        assert labels[scored][-1] == tokenizer.eos_token_id
        assert torch.equal(labels[scored], ids[scored])
        assert ids.tolist() == expected


def test_a_long_row_loses_the_beginning_of_its_prompt_and_then_the_end_of_its_target(tokenizer):
    (full,), (prompt,) = encode_rows(PROMPTS[1:], TARGETS[:1], tokenizer, 99)
    first = len(tokenizer("")["input_ids"][:1])  # <s>, which stays
    written = len(full) - prompt
    for max_length in range(len(full), first + 1, -1):
        (row,), (start,) = encode_rows(PROMPTS[1:], TARGETS[:1], tokenizer, max_length)
        assert len(row) == max_length
        target = row[start:]
        assert len(target) == min(written, max_length - first - 1)
        assert target == full[prompt:][: len(target)]
        assert row[:first] == full[:first]
        assert row[first:start] == full[prompt - (start - first) : prompt]
    with pytest.raises(UserError, match=f"max_length={first + 1} must be at least {first + 2}"):
        encode_rows(PROMPTS, TARGETS, tokenizer, first + 1)


def test_a_long_prompt_keeps_its_end(tokenizer):
    (full,), (short,) = (encode_prompts(PROMPTS[1:], tokenizer, length) for length in (99, 5))
    first = len(tokenizer("")["input_ids"][:1])
    assert short == full[:first] + full[first - 5 :]


def test_templates():
    assert generation_template(None, has_pairs=False) == "{text} =>"
    assert generation_template(None, has_pairs=True) == "{text} {pair} =>"
    assert generation_template("Q: {text}", has_pairs=False) == "Q: {text}"


def test_the_template_and_the_pair_are_in_the_prompt(decoder_tokenizer):
    encoded = encode(task(["a"], ["b"], ["film"]), decoder_tokenizer, max_length=32, template="{pair}, {text}?")
    assert decoder_tokenizer.decode(encoded.prompts[0].tokens) == "film, a?"
    assert decoder_tokenizer.decode(encoded.train.batch([0]).inputs["input_ids"]) == "film, a? b<end>"
    with pytest.raises(UserError, match=r"lacks \{text\}"):
        encode(task(["a"], ["b"]), decoder_tokenizer, max_length=32, template="It was")


def test_prompts_are_the_different_inputs(decoder_tokenizer):
    raw = task(["a", "film", "a"], ["good", "fun", "great"])
    references = [["good", "great", "it"], ["fun"], ["good", "great", "it"]]
    raw = RawTask("some", "generation", raw.train, RawSplit(**vars(raw.train) | {"references": references}), [], None)
    prompts = encode(raw, decoder_tokenizer, max_length=32, template=None).prompts
    assert [decoder_tokenizer.decode(prompt.tokens) for prompt in prompts] == ["a =>", "film =>"]
    assert [prompt.references for prompt in prompts] == references[:2]


def test_a_tokenizer_without_an_end_of_text_is_refused(bert_tokenizer):
    with pytest.raises(UserError, match="no end-of-text token"):
        encode(task(["a"], ["b"]), bert_tokenizer, max_length=32, template=None)
