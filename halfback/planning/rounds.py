"""Who says what, when: the batches and the missed steps of each sampled client, as functions of the seed alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from halfback.codecs import make_sender, parse
from halfback.codecs.protocol import Samples
from halfback.codecs.temporal import Temporal
from halfback.config import RunConfig
from halfback.data.batches import Batch, ClientData
from halfback.engine.sampling import Sampling
from halfback.parties.holdings import HiddenForm, VectorForm
from halfback.parties.protocol import Algorithm
from halfback.planning.device import Device
from halfback.planning.memory import hidden_shape, second_shape
from halfback.planning.traffic import Columns, Talk


@dataclass(frozen=True)
class Turn:
    """One client's part in one round.

    Attributes:
        client: its number.
        first: step of the run with which the round begins.
        batches: its own.
        missed: rows of the history that it lacks; turns: whether these are numbered otherwise than the run's steps.
        ever: whether there were any.
    """

    client: int
    first: int
    batches: Sequence[Batch]
    missed: int
    turns: bool
    ever: bool


def turns(
    config: RunConfig,
    algorithm: Algorithm,
    sources: Sequence[ClientData],
    inclusion: Sequence[float] | None,
    steps: int,
) -> Iterator[Turn]:
    """The turns of a run's first steps, whole rounds of them.

    inclusion: how likely each client is to be in a cohort; None where all are alike.
    """
    sampled = 1 if algorithm.needs.agreement.pools else config.sampled_clients
    sampling = Sampling(config.seed, len(sources), sampled)
    alone = algorithm.needs.turns == "one_by_one"
    numbers: list[int] = []  # of the run, the step of each row of the history
    position, cursor = dict.fromkeys(range(len(sources)), 0), dict.fromkeys(range(len(sources)), 0)
    number, first = 0, 0
    while first < steps:
        count = min(config.steps_per_round, config.steps - first)
        own = list(range(first, first + count))
        for client in sampling.draw(number, inclusion):
            known = len(numbers)
            missed = range(position[client], known)
            batches = [sources[client].batch(cursor[client] + each) for each in range(count)]
            cursor[client] += count
            moved = alone and any(numbers[row] != row for row in missed)
            yield Turn(client, first, batches, len(missed), moved, known > 0)
            if alone:
                numbers += own
            position[client] = known + count
        if not alone:
            numbers += own
        first += count
        number += 1


def talks_of(device: Device, config: RunConfig) -> Callable[[Turn], Talk]:
    """What the closed forms need of a turn."""
    theta = next(iter(device.theta.values()), torch.empty(0))
    exact = [tuple(parameter.shape) for parameter in device.exact]
    codes, reusing = _codes_of(config, device)
    alike: dict[str, Any] = {  # of all turns
        "directions": device.needs.directions,
        "exact": sum(parameter.numel() for parameter in device.exact),
        "state": exact * device.states,
        "weights": device.shapes,
        "codes": codes,
        "reusing": reusing,
        "groups": groups_of(device),
        "above": _above(device),
        "head": [tuple(parameter.shape) for parameter in device.sent_head.values()],
        "item": device.item,
        "item_of_theta": theta.element_size(),
    }

    def talk_of(turn: Turn) -> Talk:
        texts = [len(batch.inputs["lengths"]) if "lengths" in batch.inputs else None for batch in turn.batches]
        return Talk(
            first=turn.first,
            batches=[(hidden_shape(device, b), count) for b, count in zip(turn.batches, texts, strict=True)],
            missed=turn.missed,
            turns=turn.turns,
            ever=turn.ever,
            second=[second_shape(device, b) for b in turn.batches] if device.head is not None else [],
            labelled=turn.batches[0].scored is not None,
            **alike,
        )

    return talk_of


def groups_of(device: Device) -> int:
    """Of θ, where not all of it shares its slopes."""
    grouped = device.needs.agreement.groups
    if grouped is not None:
        return len(grouped(list(device.theta), device.config.sampled_clients))
    cuts = sorted({device.config.model.cut_of(client) for client in range(device.config.clients)})
    if len(cuts) == 1:
        return 1
    inside = [set(device.adapted.lower(at).bottom.state_dict()) for at in cuts]
    names = [name for name, _ in device.adapted.lower(cuts[-1]).bottom.named_parameters() if name]
    trained = {n for n, p in device.adapted.lower(cuts[-1]).bottom.named_parameters() if p.requires_grad}
    firsts = [next(place for place, own in enumerate(inside) if name in own) for name in names if name in trained]
    return len(set(firsts))


def _above(device: Device) -> list[tuple[int, ...]]:
    """θ above the device's own boundary."""
    if device.needs.boundaries is None:
        return []
    return [tuple(p.shape) for name, p in device.theta.items() if name.startswith("head.")]


def _codes_of(config: RunConfig, device: Device) -> tuple[dict[str, Columns], frozenset[str]]:
    """What each link's codecs make of a row, by link; and the links that leave out what they find again."""
    found: dict[str, Columns] = {}
    reusing = set()
    exact = sum(parameter.numel() for parameter in device.exact)
    for link, chosen in config.codecs:
        if not chosen:
            continue
        codecs = parse(chosen, f"codecs.{link}")
        dtype, width = device.lower.dtype, VectorForm(exact).width
        if not link.startswith("slopes"):
            sizes = device.second_sizes if link in ("activations_down", "gradient_up") else device.sizes
            texts = "lengths" in device.one
            shape = (config.task.max_length, *sizes) if texts else sizes
            width = HiddenForm(shape, texts, dtype).width
        else:
            dtype = VectorForm.dtype
        sender = make_sender(codecs, width=width, dtype=dtype, where=f"codecs.{link}")
        parts = sender.encode(torch.zeros(1, width, dtype=dtype), Samples(None, (1,)))
        if isinstance(codecs[0], Temporal):
            reusing.add(link)
            parts = parts[2:]
        found[link] = [(part.shape[1], part.element_size()) for part in parts]
    return found, frozenset(reusing)


def devices_by_client(config: RunConfig, at: Callable[[int], Any]) -> list[Any]:
    """For each client what `at` gives for its cut."""
    made = {cut: at(cut) for cut in {config.model.cut_of(client) for client in range(config.clients)}}
    return [made[config.model.cut_of(client)] for client in range(config.clients)]
