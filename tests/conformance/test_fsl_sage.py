"""FSL-SAGE's heads: each client's own, aligned on what the server keeps of it from round to round."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halfback.algorithms.fsl_sage import _batches
from halfback.assembly import Built
from halfback.engine.federation import Federation
from halfback.errors import UserError
from halfback.parties.server import TensorsByClient
from halfback.testing import small
from halfback.testing.wrapped import wrap
from halfback.wire.messages import Activations, Join, Weights

HEAD = "head."
# Uploads with steps 0, 3, 6, …, two steps a round: none in rounds 2 and 5, of which one is an alignment's.
BETWEEN = {"clients": 3, "algorithm__every": 3, "algorithm__align_every": 2, "algorithm__alignment_rows": 20}
ROUNDS = 9


def heads(parameters: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in dict(parameters).items() if name.startswith(HEAD)}


class ByHand:
    """The procedure of the paper and its authors in float64, from a model and batches alone."""

    def __init__(self, run: Built) -> None:
        simulation = run.federation
        self.local, self.top = (copy.deepcopy(part).double() for part in (simulation.server.part, run.model.top))
        self.theta = {name: p.detach().clone() for name, p in simulation.server.party.agreed.replica.parameters.items()}
        self.theta = {name: p.double() for name, p in self.theta.items()}
        self.sources, self.cohort = small.sources(run), simulation.server.cohort
        self.cursors = dict.fromkeys(range(3), 0)
        self.heads: dict[int, dict[str, Tensor]] = {}
        self.sets: dict[int, list[tuple[Tensor, Tensor]]] = {}  # one row each
        self.rounds: dict[int, list[int]] = {}
        self.aligned: list[int] = []

    def run(self, rounds: int) -> None:
        for t in range(rounds):
            sent = {}
            for m in self.cohort(t):
                self._align_if_due(m, t)
                sent[m] = self.heads.setdefault(m, heads(self.theta))
            uploads, means = {}, []
            for m in self.cohort(t):
                uploads[m], trained = self._train(m, self.theta | sent[m], t)
                means.append(trained)
                self.rounds.setdefault(m, []).append(t)
            for m, rows in uploads.items():
                self._server_step(rows)
                self.sets[m] = [*self.sets.get(m, []), *rows][-20:]
            self.theta = {name: torch.stack([mean[name] for mean in means]).mean(dim=0) for name in self.theta}

    def _align_if_due(self, m: int, t: int) -> None:
        before, due = self.rounds.get(m, []), t - t % 2
        if not self.sets.get(m) or before[-1] >= due:
            return
        self.aligned.append(t)
        own = {name: p.clone().requires_grad_() for name, p in self.heads[m].items()}
        hidden, labels = (torch.stack(of) for of in zip(*self.sets[m], strict=True))
        hidden.requires_grad_()
        (true,) = torch.autograd.grad(self._loss(self.top(hidden, None), labels), hidden)
        optimizer = torch.optim.Adam(own.values(), lr=1e-3)
        for _ in range(5):
            loss = self._loss(self._logits(own, hidden), labels)
            (estimate,) = torch.autograd.grad(loss, hidden, create_graph=True)
            optimizer.zero_grad()
            ((estimate - true).pow(2).sum() / true.pow(2).sum()).backward(inputs=list(own.values()))
            optimizer.step()
        self.heads[m] = {name: p.detach() for name, p in own.items()}

    def _train(self, m: int, theta: dict[str, Tensor], t: int) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
        named = dict(self.local.named_parameters())
        for name, value in theta.items():
            named[name].data.copy_(value)
        uploaded: list[tuple[Tensor, Tensor]] = []
        for step in (2 * t, 2 * t + 1):
            batch = self.sources[m].batch(self.cursors[m])
            self.cursors[m] += 1
            hidden = self.local.bottom({"pixel_values": batch.inputs["pixel_values"].double()})
            loss = self._loss(self._logits(theta, hidden), batch.labels)
            bottoms = {name: named[name] for name in theta if not name.startswith(HEAD)}
            for parameter, gradient in zip(
                bottoms.values(), torch.autograd.grad(loss, list(bottoms.values())), strict=True
            ):
                parameter.data -= 0.01 * gradient
            if step % 3 == 0:
                uploaded = list(zip(hidden.detach(), batch.labels, strict=True))
        return uploaded, {name: named[name].detach().clone() for name in theta}

    def _server_step(self, rows: list[tuple[Tensor, Tensor]]) -> None:
        if rows:
            hidden, labels = (torch.stack(of) for of in zip(*rows, strict=True))
            parameters = list(self.top.parameters())
            loss = self._loss(self.top(hidden, None), labels)
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.data -= 0.01 * gradient

    @staticmethod
    def _logits(theta: dict[str, Tensor], hidden: Tensor) -> Tensor:
        return hidden.mean(dim=(2, 3)) @ theta["head.linear.weight"].T + theta["head.linear.bias"]

    @staticmethod
    def _loss(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels.long())


def test_it_is_the_papers_procedure_in_float64() -> None:
    """Two of three clients a round, rounds without uploads, alignments in some of them, and a set that overflows."""
    run = small.built(small.images("fsl_sage", **BETWEEN, top__optimizer="sgd", top__lr=1e-2))
    by_hand = ByHand(run)
    by_hand.run(ROUNDS)
    start = {
        name: tensor.clone() for name, tensor in heads(run.federation.server.party.agreed.replica.parameters).items()
    }
    small.run(run.federation, ROUNDS, steps=2)
    server = run.federation.server.party
    assert {2, 8} & set(by_hand.aligned), "no alignment fell between two uploads"
    ours = {f"θ.{name}": tensor for name, tensor in server.agreed.replica.parameters.items()}
    theirs = {f"θ.{name}": tensor for name, tensor in by_hand.theta.items()}
    ours |= {f"top.{name}": tensor for name, tensor in server.top.module.named_parameters()}
    theirs |= {f"top.{name}": tensor for name, tensor in by_hand.top.named_parameters()}
    for m, held in server.recall(TensorsByClient).of.items():
        ours |= {f"{m}.{name}": tensor for name, tensor in heads(held).items()}
        theirs |= {f"{m}.{name}": tensor for name, tensor in by_hand.heads[m].items()}
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor.double(), theirs[name], rtol=1e-4, atol=1e-5, msg=name)
    moved = min(
        (heads(held)[name] - start[name]).abs().max()
        for held in server.recall(TensorsByClient).of.values()
        for name in start
    )
    assert moved > 2e-3, "the heads stood still: the comparison would show nothing of alignments"


def test_a_set_keeps_a_clients_newest_rows_and_no_more() -> None:
    simulation = small.built(small.images("fsl_sage", **BETWEEN)).federation
    uploads: dict[int, list[Tensor]] = {}
    for m, message in _uploaded(simulation, ROUNDS):
        uploads.setdefault(m, []).append(message.hidden.clone())
    assert set(uploads) == {0, 1, 2}
    for m, sent in uploads.items():
        held = simulation.server.party.recall(TensorsByClient).of[m]
        kept = torch.cat([held[f"z.{at}"] for at in sorted(int(n[2:]) for n in held if n.startswith("z."))])
        assert torch.equal(kept, torch.cat(sent)[-20:])
        assert sum(tensor.untyped_storage().nbytes() for name, tensor in held.items() if name[:2] == "z.") <= (
            len(kept) * kept[0].numel() * 4
        ), "a view keeps what was dropped"


@pytest.mark.parametrize("newest", [1000, 8])
def test_texts_of_unequal_length_go_with_their_labels(tiny_bert: Path, sentences: Path, newest: int) -> None:
    """An alignment takes each text of a set once, however long it is, and of an upload that was cut the rest."""
    settings: dict[str, Any] = {"clients": 2, "batch_size": 3, "algorithm__alignment_rows": newest}
    simulation = small.built(small.texts("fsl_sage", tiny_bert, sentences, **settings)).federation
    sent: dict[int, list[Activations]] = {0: [], 1: []}
    for m, message in _uploaded(simulation, 6):
        sent[m].append(message)
    for m, messages in sent.items():
        wanted = [text for message in messages for text in _texts(message.hidden, message.lengths, message.labels)]
        batches = list(_batches(simulation.server.party.recall(TensorsByClient).of[m]))
        assert len({len(text) for text in wanted}) > 1
        assert [text for batch in batches for text in _texts(*batch)] == wanted[-newest:]


def _texts(hidden: Tensor, lengths: Any, labels: Any) -> list[bytes]:
    tokens = zip(hidden.split(lengths.tolist()), labels, strict=True)
    return [own.numpy().tobytes() + label.numpy().tobytes() for own, label in tokens]


def _uploaded(simulation: Federation, rounds: int) -> Iterator[tuple[int, Activations]]:
    answer, seen = simulation.server.algorithm.answer, list[tuple[int, Activations]]()

    def listening(server: Any, messages: dict[int, Any]) -> Any:
        seen.extend((m, message) for m, message in messages.items() if isinstance(message, Activations))
        return answer(server, messages)

    wrap(simulation, answer=listening)
    small.run(simulation, rounds, steps=2)
    yield from seen


def test_sets_and_heads_are_the_servers_in_memory_and_in_checkpoints() -> None:
    simulation = small.built(small.images("fsl_sage")).federation
    small.run(simulation, 3)
    lasting = [
        tensor for held in simulation.server.party.recall(TensorsByClient).of.values() for tensor in held.values()
    ]
    assert sum(tensor.nbytes for tensor in lasting) > 100_000
    resident = {tensor.data_ptr() for tensor in simulation.server.resident()}
    assert all(tensor.data_ptr() in resident for tensor in lasting)
    saved, _ = simulation.state()
    kept = {tensor.data_ptr() for name, tensor in saved.items() if name.startswith("lasting.")}
    assert kept == {tensor.data_ptr() for tensor in lasting}


def test_going_back_to_a_checkpoint_forgets_what_came_after_it() -> None:
    simulation = small.built(small.images("fsl_sage", clients=3, sampled_clients=3)).federation
    small.run(simulation, 1)
    tensors, values = simulation.state()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    losses = small.run(simulation, 2, first=1)
    simulation.load_state(before, values)
    held = simulation.server.party.recall(TensorsByClient).of.values()
    assert {len(of_client) for of_client in held} == {2 + 2 + 2 * 8}  # of a head, counts, two of each row of an upload
    assert small.run(simulation, 2, first=1) == losses


def test_a_device_that_lies_about_its_head_changes_no_other_ones() -> None:
    """What comes up of a head is for those who come for the first time; a client that has one gets its own."""
    honest, lied_to = (small.built(small.images("fsl_sage", clients=3, sampled_clients=3)).federation for _ in range(2))
    for simulation, factor in ((honest, 1), (lied_to, 50)):
        answer = simulation.server.algorithm.answer

        def lying(server: Any, messages: dict[int, Any], answer: Any = answer, factor: int = factor) -> Any:
            if isinstance(messages[2], Weights):
                named = zip(server.agreed.replica.parameters, messages[2].tensors, strict=True)
                false = (tensor * factor if name.startswith(HEAD) else tensor for name, tensor in named)
                messages = messages | {2: Weights(tuple(false))}
            return answer(server, messages)

        wrap(simulation, answer=lying)
    assert small.run(honest, 3) == small.run(lied_to, 3)


def test_an_upload_before_any_greeting_is_no_crash() -> None:
    simulation = small.built(small.images("fsl_sage")).federation
    batch = simulation.client(0).party.feed.data.batch(0)
    hidden = simulation.server.bottom(batch.inputs).detach()
    message = Activations(hidden, None, batch.labels.int(), batch.sample_ids.int())
    simulation.server.algorithm.answer(simulation.server.party, {0: message})
    assert simulation.server.algorithm.answer(simulation.server.party, {0: Join(0)}).keys() == {0}


@pytest.mark.parametrize("option", ["align_every", "alignment_epochs", "alignment_rows"])
def test_options_that_mean_nothing(option: str) -> None:
    with pytest.raises(UserError, match=f"algorithm.{option}=0: 1 or more are allowed"):
        small.built(small.images("fsl_sage", **{f"algorithm__{option}": 0}))


def test_a_checkpoint_has_what_lasts_only_where_the_method_says_so() -> None:
    """`cse_fsl` has an auxiliary head too, and keeps nothing of a client."""
    simulation = small.built(small.images("cse_fsl")).federation
    tensors, values = simulation.state()
    simulation.load_state(tensors, values)
    with pytest.raises(UserError, match=r"tensor lasting\.0\.rows is there, and nothing has this name"):
        simulation.load_state(tensors | {"lasting.0.rows": torch.tensor(0)}, values)
