"""The U-shape: no label is sent, the gradients are the uncut model's, and neither side believes the other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hostile_peers import HOSTILE, spoil
from test_hostile_server import spoil_answers
from torch import Tensor, nn

from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.data.batches import Batch
from halfback.engine.federation import Federation
from halfback.errors import Diverged, PeerError, UserError
from halfback.models.adapters import trainable
from halfback.models.cut import cut
from halfback.models.loading import ModelRequest, load_model
from halfback.models.objectives import loss, scored, terms
from halfback.parties.client_feedback import head_gradient
from halfback.parties.holdings import Head
from halfback.telemetry.meters import MemoryMeter
from halfback.testing import small
from halfback.wire.messages import Activations, HeadGradient, Message, MiddleActivations, Nothing
from halfback.wire.packing import unpack

World = Callable[..., RunConfig]
Spoil = Callable[[Any], Message]
ALGORITHMS = ("ho_sfl", "split_lora", "frozen_bottom")
HEADS = (None, 0, 1)


@pytest.fixture(params=["images", "classifier", "verbaliser", "language-model"])
def world(request: pytest.FixtureRequest) -> World:
    """(algorithm, changes) → configuration: what each has as labels and as a head differs."""

    def config(algorithm: str, **changes: Any) -> RunConfig:
        if request.param == "images":
            return small.images(algorithm, **changes)
        model = request.getfixturevalue("tiny_bert" if request.param == "classifier" else "tiny_llama")
        if request.param == "verbaliser":
            changes |= {"task__verbaliser": ["dull", "great"], "task__template": "{text} it was"}
        if request.param == "language-model":
            changes |= {"task__objective": "causal_lm"}
        return small.texts(algorithm, model, request.getfixturevalue("sentences"), **changes)

    return config


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "vanilla_split"])
def test_no_label_is_in_any_message(algorithm: str, head: int, world: World) -> None:
    """Neither under its role nor, in any integer format, among the bytes that reach the server, codecs or not.

    Without a head, the same watch finds them.
    """
    links = ("activations_up", "activations_down", "gradient_up", "gradient_down")
    codecs = {f"codecs__{link}": ["temporal", "int8"] for link in links}
    for inner, changes in ((head, {}), (head, codecs), (None, {})):
        simulation = small.built(world(algorithm, model__head=inner, **changes)).federation
        labels = [_rows(simulation, client) for client in simulation.server.cohort(0)]
        sent: list[bytes] = []
        simulation.tap = lambda _, direction, data, sent=sent: sent.append(data) if direction == "up" else None
        small.run(simulation, 1)
        assert sum(map(len, sent)) == simulation.server.ledger.total("up")
        found = any(form in data for data in sent for forms in labels for form in forms)
        roles = {role for by_role in simulation.server.ledger.bytes_by_kind["up"].values() for role in by_role}
        assert ("labels" in roles) == found == (inner is None)
        kinds = {type(unpack(data)).__name__ for data in sent}
        assert ("HeadGradient" in kinds) == (inner is not None)
        assert ("Caches" in kinds) == bool(changes)


def _rows(simulation: Federation, client: int) -> list[bytes]:
    """The labels of a client's first batch, as they would be sent."""
    labels = simulation.client(client).party.feed.data.batch(0).labels
    return [labels.to(dtype).numpy().tobytes() for dtype in (torch.int8, torch.int32, torch.int64)]


def test_a_step_is_that_of_the_plain_shape_and_of_the_uncut_model(world: World) -> None:
    """SGD at rate 1, so that a weight after the step is the weight before it minus the gradient."""
    changes = {"clients": 1, "sampled_clients": 1, "batch_size": 20}
    changes |= {
        f"{part}__{key}": value for part in ("bottom", "top") for key, value in (("optimizer", "sgd"), ("lr", 1.0))
    }
    runs = [small.built(world("split_lora", model__head=head, **changes)) for head in HEADS]
    losses = [small.run(run.federation, 1)[0] for run in runs]
    for run in runs:
        run.federation.server.agreed_bottom()

    whole = small.built(world("split_lora", **changes))
    batch, moved = whole.federation.client(0).party.feed.data.batch(0), _trained(whole)
    uncut = loss(whole.task.objective, whole.model.logits(batch.inputs, batch.scored), batch.labels)
    gradients = torch.autograd.grad(uncut, list(moved.values()))
    wanted = {name: p.detach() - g for (name, p), g in zip(moved.items(), gradients, strict=True)}
    for run, value in zip(runs, losses, strict=True):
        assert value == pytest.approx(uncut.item(), rel=1e-6)
        found = _trained(run)
        assert found.keys() == wanted.keys()
        for name, parameter in found.items():
            # Rows are summed a few at a time instead of in one product: some roundings of float32 of the terms.
            torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-5, atol=2e-6, msg=name)


def _trained(run: Built) -> dict[str, nn.Parameter]:
    parts = (run.model.bottom, run.model.top, run.model.head)
    return {name: p for part in parts if part is not None for name, p in trainable(part).items()}


def test_both_shapes_evaluate_alike(world: World) -> None:
    results = [small.built(world("ho_sfl", model__head=head)).evaluate() for head in HEADS]
    assert results[0] == results[1] == results[2]


def _language_model_head(folder: Path) -> Head:
    model, _ = load_model(
        str(folder), ModelRequest(head="causal_lm", num_labels=1, seed=0, dtype=torch.float32, in_channels=3)
    )
    last = cut(model, 1, head=1).head
    assert last is not None
    last.body.lm_head.requires_grad_(True)  # type: ignore[union-attr]
    objective: Any = "causal_lm"
    return Head(last, lambda *a: loss(objective, *a), lambda labels: terms(objective, labels), (16,))


def test_row_by_row_is_the_mean_over_the_tokens_of_the_batch(tiny_llama: Path) -> None:
    """Rows with 7, 3, 0 and 1 counted tokens: a mean of the rows' means would be another number."""
    head = _language_model_head(tiny_llama)
    torch.manual_seed(0)
    tokens = torch.randint(0, 12, (4, 8))
    for row, first in enumerate((1, 5, 8, 7)):
        tokens[row, :first] = -100
    tokens, lengths = tokens.flatten(), torch.full((4,), 8)
    batch = Batch({"lengths": lengths}, tokens, torch.arange(4), scored(tokens))
    hidden = torch.randn(32, 16)
    said = head_gradient(head, batch, MiddleActivations(hidden, tuple(p.detach() for p in head.parameters.values())))

    whole = hidden.clone().requires_grad_()
    mean = head.loss(head.module(whole, lengths)[scored(tokens)], tokens)
    at_cut, *of_head = torch.autograd.grad(mean, [whole, *head.parameters.values()])
    torch.testing.assert_close(said.loss, mean.detach().reshape(1))
    for mine, wanted in zip((said.gradient, *said.head), (at_cut, *of_head), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-7)  # the order of summation
    assert not said.gradient[16:24].any()
    assert said.gradient[24:].any()


def test_the_logits_of_one_row_alone_are_in_memory() -> None:
    """A vocabulary of 4,000 for 16 channels: beside the logits and their gradients, everything else is small."""
    rows, tokens, width, vocabulary = 8, 16, 16, 4_000

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(vocabulary, width), requires_grad=False)

        def forward(self, hidden: Tensor, lengths: Tensor, scored: Tensor) -> Tensor:
            return hidden[scored] @ self.weight.T

    module: Any = Wide()
    head = Head(module, lambda *a: loss("causal_lm", *a), lambda labels: terms("causal_lm", labels), (width,))
    labels = torch.ones(rows * tokens).long()
    labels[::tokens] = -100  # nothing is before a text's first token
    batch = Batch({"lengths": torch.full((rows,), tokens)}, labels, torch.zeros(1), scored(labels))
    answer = MiddleActivations(torch.randn(rows * tokens, width), ())
    meter = MemoryMeter([])
    with meter.running():
        head_gradient(head, batch, answer)
    of_a_row = 4 * tokens * vocabulary
    assert of_a_row < meter.peak_bytes < 4.5 * of_a_row  # their logarithms and two gradients, for an instant also they


def test_a_run_that_is_stopped_holds_the_head(world: World) -> None:
    simulation = small.built(world("split_lora", model__head=1)).federation
    small.run(simulation, 1)
    tensors, _ = simulation.state()
    assert simulation.server.party.top.head
    assert all(torch.equal(tensors[f"top.{name}"], p) for name, p in simulation.server.party.top.head.items())


SAYS_HEAD_GRADIENT: dict[str, tuple[Spoil, type[Exception], str]] = {
    "gradient-short": (
        lambda m: replace(m, gradient=m.gradient[1:]),
        PeerError,
        r"HeadGradient.gradient, the second cut: torch.float32 \(7, 64, 4, 4\) came, .* \(8, 64, 4, 4\) is allowed",
    ),
    "gradient-float64": (lambda m: replace(m, gradient=m.gradient.double()), PeerError, "torch.float64"),
    "gradient-nan": (lambda m: replace(m, gradient=m.gradient * torch.nan), Diverged, "HeadGradient of client 3"),
    "loss-two": (lambda m: replace(m, loss=torch.zeros(2)), PeerError, r"HeadGradient.loss, .* \(2,\) came"),
    "loss-inf": (lambda m: replace(m, loss=m.loss / 0), Diverged, "HeadGradient of client 3 is not finite"),
    "head-none": (lambda m: replace(m, head=()), PeerError, "HeadGradient.head: 0 came, 2 are allowed"),
    "head-broadcast": (
        lambda m: replace(m, head=tuple(t.flatten()[:1] for t in m.head)),
        PeerError,
        r"HeadGradient.head, body.head.linear.weight: torch.float32 \(1,\) came, torch.float32 \(10, 64\)",
    ),
    "head-nan": (lambda m: replace(m, head=tuple(t / 0 for t in m.head)), Diverged, "not finite"),
}
SAYS_MIDDLE: dict[str, tuple[Spoil, type[Exception], str]] = {
    "hidden-short": (
        lambda m: replace(m, hidden=m.hidden[1:]),
        PeerError,
        r"MiddleActivations.hidden, the second cut: torch.float32 \(7, 64, 4, 4\) came",
    ),
    "hidden-half": (lambda m: replace(m, hidden=m.hidden.half()), PeerError, "torch.float16"),
    "hidden-nan": (lambda m: replace(m, hidden=m.hidden * torch.nan), Diverged, "MiddleActivations is not finite"),
    "head-many": (lambda m: replace(m, head=m.head * 2), PeerError, r"head: 4 (came|tensors announced)"),
    "head-flat": (lambda m: replace(m, head=tuple(t.flatten() for t in m.head)), PeerError, "body.head.linear.weight"),
    "head-inf": (lambda m: replace(m, head=tuple(t / 0 for t in m.head)), Diverged, "MiddleActivations is not finite"),
    "another-kind": (lambda m: Nothing(), PeerError, "Nothing came, MiddleActivations is allowed"),
}


def u_shaped(algorithm: str, **changes: Any) -> Federation:
    return small.built(small.images(algorithm, model__head=0, sampled_clients=4, **changes)).federation


def refused(simulation: Federation, error: type[Exception], said: str, who: str) -> None:
    """One line that names who did it, and nothing has moved."""
    parts = (simulation.server.bottom, simulation.server.party.top.module, simulation.client(0).party.head.module)  # type: ignore[union-attr]
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]
    with pytest.raises(error, match=said) as caught:
        small.run(simulation, 1)
    assert who in str(caught.value)
    assert "\n" not in str(caught.value)
    for old, part in zip(before, parts, strict=True):
        assert all(torch.equal(old[name], tensor) for name, tensor in part.state_dict().items())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("what", SAYS_HEAD_GRADIENT)
def test_a_server_refuses(algorithm: str, what: str) -> None:
    change, error, said = SAYS_HEAD_GRADIENT[what]
    simulation = u_shaped(algorithm)
    spoil(simulation, HeadGradient, change)
    refused(simulation, error, said, f"client {HOSTILE}")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("what", SAYS_MIDDLE)
def test_a_device_refuses(algorithm: str, what: str) -> None:
    change, error, said = SAYS_MIDDLE[what]
    simulation = u_shaped(algorithm)
    spoil_answers(simulation, MiddleActivations, change)
    refused(simulation, error, said, "server")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_server_refuses_labels_and_activations_that_it_cannot_take(algorithm: str) -> None:
    for change, said in (
        (lambda m: replace(m, labels=torch.zeros(8).int()), "Activations.labels: some came, none are allowed"),
        (lambda m: replace(m, hidden=m.hidden[:, 1:]), "Activations.hidden: "),
    ):
        simulation = u_shaped(algorithm)
        spoil(simulation, Activations, change)
        refused(simulation, PeerError, said, f"client {HOSTILE}")


def test_lengths_are_asked_for(tiny_bert: Path, sentences: Path) -> None:
    simulation = small.built(small.texts("ho_sfl", tiny_bert, sentences, model__head=0, sampled_clients=4)).federation
    spoil(simulation, Activations, lambda m: replace(m, lengths=None))
    refused(simulation, PeerError, "Activations.lengths: none came", f"client {HOSTILE}")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradients_before_their_batch(algorithm: str, head: int | None) -> None:
    simulation = small.built(small.images(algorithm, model__head=head)).federation
    message = HeadGradient(torch.zeros(8, 64, 4, 4), torch.zeros(1), ())
    with pytest.raises(PeerError, match=f"client {HOSTILE}: HeadGradient: it came before the batch"):
        simulation.server.algorithm.answer(simulation.server.party, {HOSTILE: message})


def test_gradients_of_a_batch_from_before_the_last_step() -> None:
    """The graph of that batch belongs to weights that are gone."""
    simulation = u_shaped("split_lora")
    answer, server = simulation.server.algorithm.answer, simulation.server.party
    batches = {m: simulation.client(m).party.feed.data.batch(0) for m in (0, HOSTILE)}
    with torch.no_grad():
        hidden = {m: simulation.server.bottom(batch.inputs) for m, batch in batches.items()}
    middle = answer(server, {m: Activations(hidden[m], None, None, batches[m].sample_ids.int()) for m in batches})
    head = simulation.client(0).party.head
    assert head is not None
    said = {m: head_gradient(head, batches[m], middle[m]) for m in batches}  # type: ignore[arg-type]
    answer(server, {0: said[0]})
    with pytest.raises(PeerError, match=f"client {HOSTILE}: HeadGradient: it came before the batch"):
        answer(server, {HOSTILE: said[HOSTILE]})


def test_what_cannot_be_cut_or_trained_so_is_said() -> None:
    with pytest.raises(UserError, match=r"model.head=0: zo_sfl can't .*; use model.head=null, or one of ho_sfl, split"):
        small.images("zo_sfl", model__head=0)
    with pytest.raises(UserError, match="head is 2; ResNet has 3 blocks and the cut is 1, so 0 to 1 are allowed"):
        small.built(small.images("ho_sfl", model__head=2))
