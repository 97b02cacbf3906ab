"""Runs whose devices train a soft prompt: it moves, and nothing of it is seen on the wire."""

from pathlib import Path
from typing import Any

import pytest
import torch

from halfback.conformance import small
from halfback.errors import UserError
from halfback.wire.messages import Activations, Message


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama"])
@pytest.mark.parametrize("algorithm", ["ho_sfl", "hosl", "split_lora", "cse_fsl", "decomfl"])
def test_a_prompt_is_trained(algorithm: str, model: str, sentences: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    settings: dict[str, Any] = {"bottom__train": "prompt", "bottom__prompt_tokens": 3, "bottom__optimizer": "adamw"}
    simulation = small.built(small.texts(algorithm, folder, sentences, **settings)).simulation
    (name,) = [key for key in simulation.server.replica.parameters if "prompt" in key]
    start = simulation.server.replica.parameters[name].detach().clone()
    assert start.shape == (3, 16)
    sent: list[tuple[int, ...]] = []
    carry = simulation.link.carry

    def listening(client: int, direction: Any, message: Message, memory: Any = None) -> Message:
        if isinstance(message, Activations):
            sent.append(tuple(message.hidden.shape[:2]))
        return carry(client, direction, message, memory)

    simulation.link.carry = listening  # type: ignore[method-assign]
    small.run(simulation, 2, measure=True)
    texts = {tuple(s.batch(n).inputs["input_ids"].shape) for s in simulation.sources for n in range(4)}
    assert set(sent) <= texts
    assert bool(sent) == (algorithm != "decomfl")
    simulation.agreed_bottom()
    moved = (simulation.server.replica.parameters[name].detach() - start).abs()
    assert (moved > 0).float().mean() > 0.9


def test_a_prompt_needs_one_cut(tiny_bert: Path, sentences: Path) -> None:
    with pytest.raises(UserError, match=r"model\.cut=\[1, 2\]: with bottom\.train=prompt"):
        small.texts("ho_sfl", tiny_bert, sentences, bottom__train="prompt", model__cut=[1, 2])
    config = small.texts("ho_fl", tiny_bert, sentences, bottom__train="prompt", algorithm__boundaries=[1, 2])
    with pytest.raises(UserError, match=r"bottom\.train=prompt: .* all devices need the same one"):
        small.built(config)


def test_a_prompt_leaves_nothing_for_exact_blocks(tiny_bert: Path, sentences: Path) -> None:
    settings = {"bottom__train": "prompt", "model__cut": 2, "algorithm__exact_blocks": 1}
    with pytest.raises(UserError, match=r"exact_blocks=1: bottom\.train=prompt has nothing .*exact_blocks=0"):
        small.built(small.texts("ho_sfl", tiny_bert, sentences, **settings))


def test_a_model_that_writes_has_no_prompt(tiny_llama: Path, sentences: Path) -> None:
    config = small.texts("ho_sfl", tiny_llama, sentences, bottom__train="prompt", task__objective="causal_lm")
    with pytest.raises(UserError, match=r"bottom\.train=prompt: it is for classification; .*causal_lm"):
        small.built(config)


def test_a_prompt_is_the_same_on_every_site(tiny_bert: Path, sentences: Path) -> None:
    settings = {"bottom__train": "prompt", "seed": 3}
    one, other = (small.built(small.texts("ho_sfl", tiny_bert, sentences, **settings)) for _ in range(2))
    first, second = (dict(built.model.bottom.named_parameters()) for built in (one, other))
    assert torch.equal(first["prompt.weight"], second["prompt.weight"])
