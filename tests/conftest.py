"""What every test shares: tiny text models in a folder, and a table of film sentences."""

import os
import random
from pathlib import Path

import pytest
import transformers

from halfback.testing.texts import saved, tokenizer_with
from halfback.testing.texts import sentences as sentences
from halfback.testing.texts import tiny_bert as tiny_bert


@pytest.fixture
def chance() -> random.Random:
    """Chooses the moments at which a test kills; one that fails shows the setting with which they are the same."""
    seed = int(os.environ.get("HALFBACK_TEST_SEED") or random.SystemRandom().randrange(10**9))
    print(f"HALFBACK_TEST_SEED={seed}")  # shown with a failure alone
    return random.Random(seed)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of three blocks, 16 wide, and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_with(["<pad>", "<unk>", "</s>"]),
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
    )
    config = transformers.LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=2,
    )
    return saved(folder, transformers.LlamaForCausalLM, config, fast)
