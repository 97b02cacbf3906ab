"""Decoding with the re-joined model, against the two halves step by step and a search through all continuations."""

import pytest
import torch
from tiny_models import DECODERS, language_model
from torch import Tensor

from halfback.models.adapters import Lora, set_trainable, trainable
from halfback.models.cut import CutModel, cut
from halfback.models.decoding import Decoding, continue_prompts

PROMPTS = [[7, 8, 9, 10, 11, 12], [20], [5, 6, 50]]
TOKENS = 8


def trained(name: str, bottom: str = "lora") -> CutModel:
    model = cut(language_model(name), 1)
    set_trainable(model, bottom=bottom, top="lora", lora=Lora(rank=2, alpha=4), seed=0)
    generator = torch.Generator().manual_seed(0)
    for half in (model.bottom, model.top):
        for parameter in trainable(half).values():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def by_hand(model: CutModel, prompt: list[int], end: int | None) -> list[int]:
    """The likeliest next token of bottom and top together, again and again, without a cache."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + TOKENS:
        logits = model.logits({"input_ids": torch.tensor(tokens), "lengths": torch.tensor([len(tokens)])})
        following = int(logits[-1].argmax())
        if following == end:
            break
        tokens.append(following)
    return tokens[len(prompt) :]


def decode(model: CutModel, beams: int = 1, end: int | None = None, batch_size: int = 2) -> list[list[int]]:
    return continue_prompts(model.whole, PROMPTS, Decoding(0, end, beams, TOKENS), batch_size=batch_size)


@pytest.mark.parametrize("bottom", ["lora", "full"])
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_is_the_likeliest_token_of_both_halves(name: str, bottom: str) -> None:
    """With prompts of unlike lengths in a batch, and a cache of keys and values: the same tokens."""
    model = trained(name, bottom)
    wanted = [by_hand(model, prompt, None) for prompt in PROMPTS]
    assert decode(model) == wanted
    untrained = cut(language_model(name), 1)
    assert decode(untrained) != wanted  # what is trained is used


def test_it_stops_at_the_end_of_text() -> None:
    model = trained("llama")
    free = decode(model)
    end = free[0][3]
    assert decode(model, end=end, batch_size=3) == [by_hand(model, prompt, end) for prompt in PROMPTS]
    assert len(decode(model, end=end)[0]) == free[0].index(end)


@torch.no_grad()
def test_as_many_beams_as_tokens_find_the_likeliest_pair() -> None:
    """Two tokens with a beam for each of the 99 first ones leave nothing out."""
    model = trained("llama")

    def log_probabilities(rows: Tensor) -> Tensor:
        lengths = torch.full((len(rows),), rows.shape[1])
        logits = model.logits({"input_ids": rows.flatten(), "lengths": lengths})
        return logits[lengths.cumsum(0) - 1].log_softmax(-1)

    prompt = torch.tensor(PROMPTS[0])
    first = log_probabilities(prompt[None])[0]
    rows = torch.cat([prompt.expand(99, -1), torch.arange(99)[:, None]], dim=1)
    together = first[:, None] + log_probabilities(rows)
    best = divmod(int(together.argmax()), 99)
    found = continue_prompts(model.whole, PROMPTS[:1], Decoding(0, None, beams=99, max_new_tokens=2), batch_size=1)
    assert found == [list(best)]


def test_the_models_own_defaults_are_left_aside_and_kept() -> None:
    model = trained("llama")
    wanted = decode(model)
    own = model.whole.generation_config
    own.repetition_penalty, own.do_sample, own.temperature, own.min_new_tokens = 5.0, True, 3.0, 2
    before = own.to_dict()
    assert decode(model) == wanted
    assert model.whole.generation_config is own
    assert own.to_dict() == before


def test_nothing_else_changes() -> None:
    model = trained("gpt2")
    before = {name: p.clone() for name, p in model.whole.named_parameters()}
    state = torch.get_rng_state()
    decode(model, beams=3)
    assert all(torch.equal(p, before[name]) for name, p in model.whole.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
