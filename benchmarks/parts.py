"""Bottoms that the benchmarks measure: real weights where a package carries them, else the real size."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from halfback.models.adapters import Lora, set_trainable, trainable
from halfback.models.cut import cut
from halfback.models.loading import ModelRequest, load_model
from halfback.models.running import Bottom


@dataclass(frozen=True)
class FixedBatch:
    """One batch of random tokens, without padding."""

    inputs: dict[str, Tensor]
    labels: Tensor
    sample_ids: Tensor
    scored: None = None


@dataclass(frozen=True)
class OneBatch:
    """A data source that gives the same batch for every number."""

    only: FixedBatch

    def batch(self, number: int) -> FixedBatch:
        return self.only


def make_bottom(name: str, train: str, dtype: torch.dtype = torch.float32, *, blocks: int = 3) -> tuple[Bottom, int]:
    """(bottom, vocabulary): the first blocks of `minilm`, or of a random `opt` of OPT-125M's size."""
    if name == "minilm":
        whole = load_model("all-minilm-l6-v2", ModelRequest(head="classifier", num_labels=2, seed=0, dtype=dtype))[0]
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            whole = OPTForCausalLM(OPTConfig(num_hidden_layers=blocks + 1)).to(dtype)
    model = cut(whole, blocks)
    set_trainable(model, bottom=train, top="lora", lora=Lora(), seed=0)  # type: ignore[arg-type]
    for parameter_name, parameter in trainable(model.bottom).items():
        if ".lora_B." in parameter_name:  # adapters that have learnt something: at zero, half of the slopes vanish
            generator = torch.Generator().manual_seed(1)
            parameter.data.normal_(0, 0.02, generator=generator)
    return model.bottom, whole.config.vocab_size


def make_batch(vocabulary: int, rows: int, length: int) -> FixedBatch:
    """Random tokens: (rows, length)."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, vocabulary, (rows * length,), generator=generator)
    return FixedBatch(
        {"input_ids": ids, "lengths": torch.full((rows,), length)},
        torch.zeros(rows, dtype=torch.int64),
        torch.arange(rows),
    )
