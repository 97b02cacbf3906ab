import pytest
import torch

from halfback.data.batches import Batch
from halfback.data.encode import encode, verbaliser_ids
from halfback.data.tasks import RawSplit, RawTask
from halfback.errors import UserError

TEXTS = ["a film", "a film that was great fun and good", "great"]
PAIRS = ["it was good", "no", "a film that was terrible"]


def task(texts=TEXTS, pairs=None, objective="classification"):
    labels = torch.arange(len(texts)) % 2 if objective == "classification" else torch.zeros(len(texts)).long()
    split = RawSplit(list(texts), None if pairs is None else list(pairs), None, labels)
    return RawTask("some", objective, split, split, ["no", "yes"], None)


@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_batches_are_what_the_tokenizer_gives(bert_tokenizer, pairs):
    split = encode(task(pairs=pairs), bert_tokenizer, max_length=8, template=None).train
    batch = split.batch([2, 0, 1])
    order = [TEXTS[row] for row in (2, 0, 1)], None if pairs is None else [PAIRS[row] for row in (2, 0, 1)]
    direct = bert_tokenizer(*order, truncation=True, max_length=8)
    assert batch.inputs["input_ids"].tolist() == sum(direct["input_ids"], [])  # noqa: RUF017
    assert batch.inputs["lengths"].tolist() == [len(row) for row in direct["input_ids"]]
    assert {tensor.dtype for tensor in batch.inputs.values()} == {torch.int64}
    assert ("token_type_ids" in batch.inputs) == (pairs is not None)
    if pairs is not None:
        assert batch.inputs["token_type_ids"].tolist() == sum(direct["token_type_ids"], [])  # noqa: RUF017
    assert batch.labels.tolist() == [0, 0, 1]
    assert batch.sample_ids.tolist() == [2, 0, 1]


def test_a_row_is_the_same_alone_as_in_a_batch(decoder_tokenizer):
    split = encode(task(), decoder_tokenizer, max_length=32, template=None).train
    together = split.batch(torch.arange(3)).inputs
    for row, ids in enumerate(together["input_ids"].split(together["lengths"].tolist())):
        assert torch.equal(ids, split.batch([row]).inputs["input_ids"])
        assert decoder_tokenizer.decode(ids) == TEXTS[row]


def test_causal_labels_are_the_tokens_but_for_each_rows_first(decoder_tokenizer):
    encoded = encode(task(objective="causal_lm"), decoder_tokenizer, max_length=32, template=None)
    batch = encoded.train.batch([0, 1])
    assert batch.labels.shape == batch.inputs["input_ids"].shape
    assert batch.labels.dtype == torch.int64
    firsts = torch.tensor([0, int(batch.inputs["lengths"][0])])  # before them is nothing, or another row
    assert (batch.labels[firsts] == -100).all()
    wanted = batch.inputs["input_ids"].index_fill(0, firsts, -100)
    assert torch.equal(batch.labels, wanted)
    assert batch.scored is not None
    assert torch.equal(batch.scored + 1, (wanted != -100).nonzero().squeeze(1))
    assert encoded.metric == "perplexity"
    assert encoded.train.labels.tolist() == [0, 0, 0]


def test_a_template_keeps_its_end_when_the_text_is_too_long(decoder_tokenizer):
    long = "a film that was great fun " * 20 + "END"
    split = encode(task([long, "a"]), decoder_tokenizer, max_length=12, template="Review: {text} It was").train
    rows = [split.batch([row]).inputs["input_ids"] for row in range(2)]
    assert len(rows[0]) == 12
    assert decoder_tokenizer.decode(rows[0]).endswith("END It was")
    assert decoder_tokenizer.decode(rows[1]).endswith("a It was")
    without = encode(task([long]), decoder_tokenizer, max_length=12, template=None).train.batch([0])
    assert long.startswith(decoder_tokenizer.decode(without.inputs["input_ids"]))


def test_a_template_for_bert_keeps_the_special_tokens(bert_tokenizer):
    split = encode(task(["good " * 50]), bert_tokenizer, max_length=10, template="{text} it was").train
    tokens = bert_tokenizer.convert_ids_to_tokens(split.batch([0]).inputs["input_ids"].tolist())
    assert tokens == ["[CLS]"] + ["good"] * 6 + ["it", "was", "[SEP]"]


def test_a_template_takes_the_pair_in_and_braces_of_texts_are_text(bert_tokenizer):
    split = encode(task(["{pair} x"], ["y {0}"]), bert_tokenizer, max_length=32, template="{text}? {pair}").train
    batch = split.batch([0])
    assert batch.inputs["input_ids"].tolist() == bert_tokenizer("{pair} x? y {0}")["input_ids"]
    assert "token_type_ids" not in batch.inputs


def test_the_tokenizer_stays_as_it_was(bert_tokenizer):
    before = bert_tokenizer.truncation_side, bert_tokenizer("good " * 50)["input_ids"]
    encode(task(), bert_tokenizer, max_length=4, template="{text} it")
    assert (bert_tokenizer.truncation_side, bert_tokenizer("good " * 50)["input_ids"]) == before


@pytest.mark.parametrize(
    ("template", "pairs", "said"),
    [
        ("It was", None, r"lacks \{text\}"),
        ("{text} It was", PAIRS, r"lacks \{pair\}"),
        ("{text} {pair}", None, r"names \{pair\}; allowed here: \{text\}"),
        ("{text} {lable}", None, r"names \{lable\}"),
        ("{text} {", None, "malformed"),
        ("{text:>99999999999}", None, "formats a field; only its name is allowed"),
        ("{text!r}", None, "formats a field"),
        ("{text:{pair}} {pair}", PAIRS, "formats a field"),
        ("{text} It was ", None, "ends with a blank"),
    ],
)
def test_templates_that_are_refused(decoder_tokenizer, template, pairs, said):
    with pytest.raises(UserError, match=said) as caught:
        encode(task(pairs=pairs), decoder_tokenizer, max_length=16, template=template)
    assert "\n" not in str(caught.value)


def test_texts_that_leave_nothing_to_predict(decoder_tokenizer):
    """Their loss would be 0: a perplexity of 1."""
    with pytest.raises(UserError, match="no text has a second token, so there is nothing to predict"):
        encode(task(objective="causal_lm"), decoder_tokenizer, max_length=1, template=None)


def test_other_refusals(decoder_tokenizer):
    with pytest.raises(UserError, match="max_length=0"):
        encode(task(), decoder_tokenizer, max_length=0, template=None)
    with pytest.raises(UserError, match="no tokens"):
        encode(task(["a", ""]), decoder_tokenizer, max_length=8, template=None)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        encode(task(), None, max_length=8, template=None)


@pytest.mark.parametrize(
    ("pairs", "template", "least"), [(None, None, 3), (PAIRS, None, 4), (PAIRS, "{text}{pair}", 3)]
)
def test_the_shortest_length_has_room_beside_the_special_tokens(bert_tokenizer, pairs, template, least):
    with pytest.raises(UserError, match=f"max_length={least - 1} must be at least {least}"):
        encode(task(pairs=pairs), bert_tokenizer, max_length=least - 1, template=template)
    split = encode(task(pairs=pairs), bert_tokenizer, max_length=least, template=template).train
    assert split.batch([0, 1, 2]).inputs["lengths"].tolist() == [least] * 3


def test_images_pass_as_they_are():
    images = torch.arange(24.0).view(6, 1, 2, 2)
    raw = RawSplit(None, None, images, torch.arange(6))
    encoded = encode(RawTask("i", "classification", raw, raw, [], 1), None, max_length=1, template=None)
    batch = encoded.validation.batch(torch.tensor([4, 1]))
    assert list(batch.inputs) == ["pixel_values"]
    assert torch.equal(batch.inputs["pixel_values"], images[[4, 1]])
    assert batch.labels.tolist() == batch.sample_ids.tolist() == [4, 1]
    assert (len(encoded.train), encoded.metric) == (6, "accuracy")


def test_to_moves_every_tensor():
    batch = Batch({"x": torch.zeros(1)}, torch.zeros(1), torch.zeros(1)).to("meta")
    assert {tensor.device.type for tensor in (batch.inputs["x"], batch.labels, batch.sample_ids)} == {"meta"}


def test_verbaliser_ids_are_the_tokens_that_follow_the_template(decoder_tokenizer, bert_tokenizer):
    for tokenizer in (decoder_tokenizer, bert_tokenizer):
        ids = verbaliser_ids(["great", " terrible"], tokenizer)
        prompt = tokenizer("It was", add_special_tokens=False)["input_ids"]
        for word, first in zip(("great", "terrible"), ids, strict=True):
            assert tokenizer(f"It was {word}", add_special_tokens=False)["input_ids"][len(prompt)] == first


@pytest.mark.parametrize(
    ("words", "said"),
    [(["great", "great"], "'great' and 'great'"), (["great", ""], "''"), (["great", "  "], "'  '")],
)
def test_verbalisers_that_are_refused(decoder_tokenizer, words, said):
    with pytest.raises(UserError, match=said):
        verbaliser_ids(words, decoder_tokenizer)


def test_words_may_differ_later_but_not_in_their_first_token(decoder_tokenizer, bert_tokenizer):
    with pytest.raises(UserError, match="'zzx' and 'zzy' start with the same token"):
        verbaliser_ids(["zzx", "zzy"], decoder_tokenizer)
    with pytest.raises(UserError, match="unknown to this tokenizer"):
        verbaliser_ids(["\U00013000"], bert_tokenizer)
