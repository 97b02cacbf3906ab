"""What a server answers to messages that an honest client would not send: an error that names client and field."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from halfback.algorithms import algorithms
from halfback.config import RunConfig
from halfback.engine.federation import Federation
from halfback.errors import Diverged, PeerError
from halfback.parties.by_slopes import mean_slopes
from halfback.parties.client import Client
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation
from halfback.parties.server import Server
from halfback.testing import small
from halfback.testing.table import ROWS
from halfback.testing.wrapped import saying, wrap
from halfback.wire.messages import Activations, History, Join, Losses, Message, Slopes, Weights

HONEST, HOSTILE = 0, 3
Spoil = Callable[[Any], Any]

SAYS_ACTIVATIONS: dict[str, tuple[Spoil, type[Exception], str]] = {
    "hidden-too-wide": (
        lambda m: replace(m, hidden=torch.zeros(8, 17, 16, 16)),
        PeerError,
        r"Activations.hidden: torch.float32 \(8, 17, 16, 16\) came, torch.float32 of shape \(any, 16, 16, 16\) is",
    ),
    "hidden-flat": (lambda m: replace(m, hidden=m.hidden.flatten(1)), PeerError, r"Activations.hidden: .*\(8, 4096\)"),
    "hidden-scalar": (lambda m: replace(m, hidden=torch.tensor(1.0)), PeerError, r"Activations.hidden: .*\(\) came"),
    "hidden-empty": (lambda m: replace(m, hidden=m.hidden[:0]), PeerError, r"Activations.hidden: .*\(0, 16, 16, 16\)"),
    "hidden-integers": (lambda m: replace(m, hidden=m.hidden.int()), PeerError, "Activations.hidden: torch.int32"),
    "hidden-float64": (lambda m: replace(m, hidden=m.hidden.double()), PeerError, "Activations.hidden: torch.float64"),
    "hidden-nan": (
        lambda m: replace(m, hidden=m.hidden * torch.nan),
        Diverged,
        "step 0: Activations.hidden of client 3",
    ),
    "hidden-inf": (lambda m: replace(m, hidden=m.hidden / 0), Diverged, "Activations.hidden of client 3 is not finite"),
    "labels-short": (lambda m: replace(m, labels=m.labels[1:]), PeerError, "Activations.labels: torch.int32 .7,. came"),
    "labels-scalar": (lambda m: replace(m, labels=torch.tensor(1)), PeerError, r"Activations.labels: torch.int64 \(\)"),
    "labels-float": (lambda m: replace(m, labels=m.labels.float()), PeerError, "Activations.labels: torch.float32"),
}
SAYS_LABELS: dict[str, tuple[Spoil, str]] = {
    "too-high": (lambda m: replace(m, labels=torch.full_like(m.labels, 10)), "Activations.labels: 10 came, 0 to 9 are"),
    "negative": (lambda m: replace(m, labels=torch.full_like(m.labels, -1)), "Activations.labels: -1 came, 0 to 9 are"),
    "low": (lambda m: replace(m, labels=torch.full_like(m.labels, -101)), "Activations.labels: -101 came"),
    "huge": (lambda m: replace(m, labels=m.labels + 2**30), "Activations.labels: 10737418.* came"),
    "of-eight-bits": (lambda m: replace(m, labels=m.labels.to(torch.uint8)), r"torch.uint8 \(8,\) came, torch.int32"),
    "of-64-bits": (lambda m: replace(m, labels=m.labels.long()), r"torch.int64 \(8,\) came, torch.int32 \(8,\) is"),
    "a-matrix": (
        lambda m: replace(m, labels=m.labels.unsqueeze(1)),
        r"Activations.labels: .*\(8, 1\) came, torch.int32",
    ),
}
SAYS_LENGTHS: dict[str, tuple[Spoil, str]] = {
    "absent": (lambda m: replace(m, lengths=None, labels=m.hidden[:, 0].int()), "Activations.lengths: none came"),
    "of-another-batch": (lambda m: replace(m, lengths=m.lengths[1:]), r"Activations.lengths: texts of \d+ tokens came"),
    "none-of-a-text": (lambda m: replace(m, lengths=m.lengths - m.lengths[0]), "Activations.lengths: 0 came, 1 to"),
    "too-long": (lambda m: replace(m, lengths=m.lengths + 2**20), r"Activations.lengths: \d+ came, 1 to"),
    "scalar": (lambda m: replace(m, lengths=m.lengths[0]), r"Activations.lengths: torch.int32 \(\)"),
    "float": (lambda m: replace(m, lengths=m.lengths.float()), "Activations.lengths: torch.float32"),
}
SAYS_SLOPES: dict[str, tuple[Spoil, type[Exception], str]] = {
    "another-step": (lambda m: replace(m, step=m.step + 1), PeerError, "Slopes.step: 1 came, 0 is allowed"),
    "a-step-before": (lambda m: replace(m, step=-1), PeerError, "Slopes.step: -1 came"),
    "too-many": (lambda m: replace(m, values=torch.zeros(9)), PeerError, r"Slopes.values: torch.float32 \(9,\) came"),
    "none": (lambda m: replace(m, values=torch.zeros(0)), PeerError, r"Slopes.values: torch.float32 \(0,\) came"),
    "a-matrix": (lambda m: replace(m, values=m.values.unsqueeze(0)), PeerError, r"Slopes.values: .* \(1, \d\) came"),
    "float64": (lambda m: replace(m, values=m.values.double()), PeerError, "Slopes.values: torch.float64"),
    "nan": (lambda m: replace(m, values=m.values * torch.nan), Diverged, "Slopes.values of client 3 are not finite"),
    "inf": (lambda m: replace(m, values=m.values / 0), Diverged, "Slopes.values of client 3 are not finite"),
}
SAYS_WEIGHTS: dict[str, tuple[Spoil, type[Exception], str]] = {
    "too-few": (lambda m: Weights(m.tensors[1:]), PeerError, r"Weights.tensors: \d+ came, \d+ are allowed"),
    "another-shape": (lambda m: Weights((m.tensors[0][:1], *m.tensors[1:])), PeerError, r"Weights.tensors, body\.stem"),
    "bool": (lambda m: Weights((m.tensors[0].bool(), *m.tensors[1:])), PeerError, "Weights.tensors, .*: torch.bool"),
    "float64": (lambda m: Weights(tuple(t.double() for t in m.tensors)), PeerError, "torch.float64"),
    "nan": (lambda m: Weights((m.tensors[0] * torch.nan, *m.tensors[1:])), Diverged, "Weights.tensors, .* of client 3"),
}


def config_of(row: str) -> RunConfig:
    given = {key.replace(".", "__"): value for key, value in ROWS[row].settings.items()}
    return small.images(ROWS[row].name, **given)


def names(*agreements: str) -> list[str]:
    """Those of four algorithms, which between them call every check, whose clients agree in one of these ways.

    The others call the same ones: `test_hostile_conversations` holds that they do.
    """
    four = ("ho_sfl", "zo_sfl", "split_lora", "frozen_bottom")
    return [name for name in four if algorithms()[name]().needs.agreement.name in agreements]


def spoil(simulation: Federation, kind: type[Message], change: Spoil, *, at: int = 1) -> None:
    """In the `at`-th exchange of this kind, one client's message is changed and the server is asked."""
    answer, seen = simulation.server.algorithm.answer, 0

    def spoiled(server: Server, messages: dict[int, Any]) -> Any:
        nonlocal seen
        if isinstance(messages[HONEST], kind):
            seen += 1
            if seen == at:
                messages = messages | {HOSTILE: change(messages[HOSTILE])}
        return answer(server, messages)

    wrap(simulation, answer=spoiled)


def refused(
    row_or_config: str | RunConfig, kind: type[Message], change: Spoil, error: type[Exception], said: str
) -> None:
    """The error says all this in one line, and names the client that did it."""
    config = config_of(row_or_config) if isinstance(row_or_config, str) else row_or_config
    simulation = small.built(config.model_copy(update={"sampled_clients": 4})).federation
    spoil(simulation, kind, change)
    with pytest.raises(error, match=said) as caught:
        small.run(simulation, 1)
    assert f"client {HOSTILE}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", names("slopes", "weights", "frozen"))
@pytest.mark.parametrize("what", SAYS_ACTIVATIONS)
def test_activations(name: str, what: str) -> None:
    change, error, said = SAYS_ACTIVATIONS[what]
    refused(name, Activations, change, error, said)


@pytest.mark.parametrize("name", names("slopes", "weights", "frozen"))
@pytest.mark.parametrize("what", SAYS_LABELS)
def test_labels(name: str, what: str) -> None:
    change, said = SAYS_LABELS[what]
    refused(name, Activations, change, PeerError, said)


@pytest.mark.parametrize("name", ["ho_sfl", "split_lora", "frozen_bottom"])
def test_labels_that_are_missing(name: str) -> None:
    refused(name, Activations, lambda m: replace(m, labels=None), PeerError, "Activations.labels: none came")


@pytest.mark.parametrize("name", names("slopes", "weights", "frozen"))
@pytest.mark.parametrize("what", SAYS_LENGTHS)
def test_lengths(name: str, what: str, tiny_bert: Path, sentences: Path) -> None:
    change, said = SAYS_LENGTHS[what]
    refused(small.texts(name, tiny_bert, sentences), Activations, change, PeerError, said)


@pytest.mark.parametrize("name", names("slopes", "weights", "frozen"))
def test_lengths_of_images(name: str) -> None:
    said = "Activations.lengths: some came, none are allowed for images"
    refused(name, Activations, lambda m: replace(m, lengths=torch.ones(8).int()), PeerError, said)


@pytest.mark.parametrize("name", names("slopes"))
@pytest.mark.parametrize("what", SAYS_SLOPES)
def test_slopes(name: str, what: str) -> None:
    change, error, said = SAYS_SLOPES[what]
    refused(name, Slopes, change, error, said)


@pytest.mark.parametrize("name", names("slopes"))
@pytest.mark.parametrize("position", [-1, 1, 2**62])
def test_joins(name: str, position: int) -> None:
    refused(name, Join, lambda _: Join(position), PeerError, f"Join.position: {position} came, 0 to 0 are allowed")


@pytest.mark.parametrize("what", SAYS_WEIGHTS)
def test_weights(what: str) -> None:
    change, error, said = SAYS_WEIGHTS[what]
    refused("split_lora", Weights, change, error, said)


@pytest.mark.parametrize("name", names("slopes", "weights", "frozen"))
@pytest.mark.parametrize("kind", [History, Losses])
def test_messages_that_only_a_server_says(name: str, kind: type[Message]) -> None:
    server = small.built(config_of(name)).federation.server.party
    message = History(0, torch.zeros(1, 1)) if kind is History else Losses(torch.zeros(1))
    with pytest.raises(PeerError, match=f"client {HOSTILE}: {kind.__name__}: "):
        algorithms()[name]().answer(server, {HOSTILE: message})


@pytest.mark.parametrize("name", names("slopes", "weights"))
def test_kinds_that_are_mixed(name: str) -> None:
    """An engine's affair: its error names every client with what it said, first the one that is alone with it."""
    simulation = small.built(config_of(name).model_copy(update={"sampled_clients": 4})).federation
    client_round = simulation.server.algorithm.client_round

    def another(client: Client, round: Round) -> Conversation:
        talk = client_round(client, round)
        return talk if client.id != HOSTILE else saying(talk, lambda _: Losses(torch.zeros(1)))

    wrap(simulation, client_round=another)
    with pytest.raises(PeerError, match=f"exchange: Losses of client {HOSTILE}, Join of client {HONEST}.*one kind is"):
        small.run(simulation, 1)


def _zo_server() -> tuple[Federation, Activations]:
    simulation = small.built(small.images("zo_sfl")).federation
    batch = simulation.client(0).party.feed.data.batch(0)
    with torch.no_grad():
        hidden = simulation.server.bottom(batch.inputs)
    return simulation, Activations(hidden, None, batch.labels.int(), batch.sample_ids.int())


def test_a_probe_before_its_batch() -> None:
    simulation, message = _zo_server()
    with pytest.raises(PeerError, match=f"client {HOSTILE}: Activations: a probe came before the batch"):
        simulation.server.algorithm.answer(simulation.server.party, {HOSTILE: replace(message, labels=None)})


def test_a_probe_of_another_size_than_its_batch() -> None:
    simulation, message = _zo_server()
    simulation.server.algorithm.answer(simulation.server.party, {HOSTILE: message})
    with pytest.raises(PeerError, match=f"client {HOSTILE}: Activations: a probe came before the batch"):
        simulation.server.algorithm.answer(
            simulation.server.party, {HOSTILE: replace(message, labels=None, hidden=message.hidden[:3])}
        )


def test_a_probe_of_other_tokens_than_its_batch(tiny_bert: Path, sentences: Path) -> None:
    simulation = small.built(small.texts("zo_sfl", tiny_bert, sentences)).federation
    ids, lengths = torch.arange(8).int(), torch.full((8,), 5, dtype=torch.int32)
    first = Activations(torch.zeros(40, 16), lengths, torch.zeros(8).int(), ids)
    simulation.server.algorithm.answer(simulation.server.party, {HOSTILE: first})
    with pytest.raises(PeerError, match=f"client {HOSTILE}: Activations: a probe came before the batch"):
        simulation.server.algorithm.answer(
            simulation.server.party, {HOSTILE: Activations(torch.zeros(48, 16), None, None, ids)}
        )


def test_slopes_before_their_batch() -> None:
    simulation, _ = _zo_server()
    with pytest.raises(PeerError, match=f"client {HOSTILE}: Slopes: they came before the batch"):
        simulation.server.algorithm.answer(simulation.server.party, {HOSTILE: Slopes(0, torch.zeros(1))})


def test_a_step_without_a_batch() -> None:
    """After an honest step: a gradient that was used is used up."""
    simulation = small.built(small.images("ho_sfl")).federation
    small.run(simulation, 1)
    before = {name: tensor.clone() for name, tensor in simulation.server.party.top.module.state_dict().items()}
    directions = len(simulation.server.party.agreed.rows[0])
    with pytest.raises(PeerError, match=f"client {HOSTILE}: it wants step 1 taken, but no batch came for it"):
        simulation.server.algorithm.answer(simulation.server.party, {HOSTILE: Slopes(1, torch.zeros(directions))})
    assert all(torch.equal(before[n], t) for n, t in simulation.server.party.top.module.state_dict().items())
    assert len(simulation.server.party.agreed.rows) == 1


def test_slopes_whose_sum_overflows_have_a_finite_mean() -> None:
    simulation = small.built(small.images("ho_sfl", algorithm__directions=2)).federation
    huge = {number: Slopes(0, torch.full((2,), 3e38)) for number in (HONEST, HOSTILE)}
    assert torch.equal(mean_slopes(simulation.server.party, huge, 2), torch.full((2,), 3e38))


def test_a_text_longer_than_any_of_the_task(tiny_bert: Path, sentences: Path) -> None:
    """The top's attention costs the square of the length: a short message could keep a server busy for hours."""
    simulation = small.built(small.texts("ho_sfl", tiny_bert, sentences, task__max_length=20)).federation
    ids, labels = torch.arange(2).int(), torch.zeros(2).int()
    long = Activations(torch.zeros(42, 16), torch.full((2,), 21, dtype=torch.int32), labels, ids)
    with pytest.raises(PeerError, match=r"Activations\.lengths: 21 came, 1 to 20 are"):
        simulation.server.algorithm.answer(simulation.server.party, {HOSTILE: long})


@pytest.mark.parametrize("name", names("slopes", "weights", "frozen"))
def test_a_class_is_never_left_out(name: str) -> None:
    """-100 marks tokens without a loss; a batch whose rows have none would make the loss NaN and stop everyone."""
    refused(name, Activations, lambda m: replace(m, labels=torch.full_like(m.labels, -100)), PeerError, "-100 came")


@pytest.mark.parametrize("name", ["ho_sfl", "split_lora", "frozen_bottom"])
def test_a_class_is_not_left_out_of_texts_that_have_as_many_tokens(name: str, tiny_bert: Path, sentences: Path) -> None:
    def short(m: Activations) -> Activations:
        labels = torch.full_like(m.labels, -100)  # type: ignore[arg-type]
        return replace(m, hidden=m.hidden[:8], lengths=torch.ones_like(labels), labels=labels)

    refused(small.texts(name, tiny_bert, sentences), Activations, short, PeerError, "-100 came")


@pytest.mark.parametrize("name", names("slopes", "weights", "frozen"))
def test_a_refused_message_moves_nothing(name: str) -> None:
    """What an error leaves behind is the state before the exchange: the server can go on without that client."""
    simulation = small.built(config_of(name).model_copy(update={"sampled_clients": 4})).federation
    server = simulation.server.party
    before = {
        n: t.clone() for part in (server.top.module, simulation.server.bottom) for n, t in part.state_dict().items()
    }
    spoil(simulation, Activations, lambda m: replace(m, labels=torch.full_like(m.labels, 99)))
    with pytest.raises(PeerError):
        small.run(simulation, 1)
    after: dict[str, Any] = {
        n: t for part in (server.top.module, simulation.server.bottom) for n, t in part.state_dict().items()
    }
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert server.agreed.rows == server.losses == []
