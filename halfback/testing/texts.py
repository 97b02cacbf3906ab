"""Texts for tests: a table of film sentences, a small tokenizer, and a tiny text model in a folder."""

import random
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

GOOD, BAD = ("great", "fun", "warm", "clever"), ("dull", "awful", "cold", "stupid")


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .csv of 96 sentences of 3 to 8 words, whose one telling word decides the class."""
    dice = random.Random(0)
    lines = ["text,label"]
    for row in range(96):
        words = dice.choices(("the", "film", "is", "a", "plot", "very"), k=dice.randint(2, 7))
        words.insert(dice.randint(0, len(words)), dice.choice(GOOD if row % 2 else BAD))
        lines.append(f"{' '.join(words)},{'positive' if row % 2 else 'negative'}")
    path = tmp_path_factory.mktemp("data") / "films.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of three blocks, 16 wide, and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    own = tokenizer_with(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=own, **named)
    config = transformers.BertConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return saved(folder, transformers.BertForSequenceClassification, config, fast)


def tokenizer_with(special: list[str]) -> Tokenizer:
    """One token a word of the sentences; `special` begins with those for padding and for unknown words."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=special[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    corpus = [" ".join((*GOOD, *BAD, "the film is a plot very it was"))]
    tokenizer.train_from_iterator(corpus, trainers.WordLevelTrainer(special_tokens=special))
    return tokenizer


def saved(
    folder: Path,
    kind: type[transformers.PreTrainedModel],
    config: transformers.PreTrainedConfig,
    tokenizer: transformers.PreTrainedTokenizerFast,
) -> Path:
    """The folder, with a random model of this configuration and the tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
