"""Every method against a plain loop in float64 that was written apart from it.

Three clients of unequal size, two of them in a round, two rounds of two steps, batches of unequal size; momentum or
AdamW, weight decay, and schedules on both sides. The loops run the uncut model block by block, take gradients from
autograd, and share nothing with the package but its inputs: batches, cohorts, seeds and the directions they stand for.
"""
# ruff: noqa: B023 - every function made in a loop here is called in the same turn of it

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from halfback.algorithms import algorithms
from halfback.testing import small
from halfback.zeroth.directions import direction_of, seed_for

STEPS, LOCAL, P, RADIUS = 4, 2, 2, 1e-3
Vector = dict[str, Tensor]
Loss = Callable[[Vector, Any], Tensor]


def _factor(step: int, shape: str, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    gone = (step - warmup) / (STEPS - warmup)
    return 1 - gone if shape == "linear" else (1 + math.cos(math.pi * gone)) / 2


class Rule:
    """An optimiser with a schedule; `coupled`: weight decay is part of the gradient, as in torch's SGD."""

    def __init__(self, kind: str, lr: float, decay: float, shape: str, warmup: int, *, coupled: bool) -> None:
        self.kind, self.lr, self.decay, self.shape, self.warmup = kind, lr, decay, shape, warmup
        self.coupled = coupled and kind != "adamw"
        self.first: Vector = {}
        self.second: Vector = {}
        self.taken = 0

    def step(self, theta: Vector, gradient: Vector, step: int) -> None:
        lr = self.lr * _factor(step, self.shape, self.warmup)
        self.taken += 1
        for name, g in gradient.items():
            if self.coupled:
                g = g + self.decay * theta[name]
            else:
                theta[name] = theta[name] * (1 - lr * self.decay)
            zero = torch.zeros_like(g)
            if self.kind == "momentum":
                self.first[name] = 0.9 * self.first.get(name, zero) + g
                theta[name] = theta[name] - lr * self.first[name]
            else:
                self.first[name] = 0.9 * self.first.get(name, zero) + 0.1 * g
                self.second[name] = 0.999 * self.second.get(name, zero) + 0.001 * g * g
                m = self.first[name] / (1 - 0.9**self.taken)
                v = self.second[name] / (1 - 0.999**self.taken)
                theta[name] = theta[name] - lr * m / (v.sqrt() + 1e-8)


def _mean(vectors: Sequence[Vector], shares: Sequence[float]) -> Vector:
    return {name: sum(w * v[name] for w, v in zip(shares, vectors, strict=True)) for name in vectors[0]}  # type: ignore[misc]


class World:
    """The model in float64, what a run has of inputs, and where it begins."""

    def __init__(self, name: str, changes: dict[str, Any]) -> None:
        self.built = small.built(small.images(name, **changes))
        self.federation, config = self.built.federation, self.built.config
        self.name, self.config, self.needs = name, config, algorithms()[name]().needs
        self.whole = copy.deepcopy(self.built.model.whole).double()
        self.cut = self.built.model.at
        server = self.federation.server.party
        self.theta = {n: p.detach().double().clone() for n, p in server.agreed.replica.parameters.items()}
        tops = {} if self.needs.top == "none" else dict(server.top.module.named_parameters())
        self.top = {n: p.detach().double().clone() for n, p in tops.items() if p.requires_grad}
        self.options: Any = self.federation.server.algorithm

    def rule(self, side: str) -> Rule:
        part = getattr(self.config, side)
        replayed = self.needs.top == "replayed" if side == "top" else not self.needs.backpropagates
        return Rule(part.optimizer, part.lr, part.weight_decay, part.schedule, part.warmup, coupled=not replayed)

    def cohort(self, number: int) -> list[int]:
        return self.federation.server.cohort(number)

    def shares(self, cohort: Sequence[int]) -> list[float]:
        rows = [
            len(self.built.federation.client(c).party.feed.data) if self.options.aggregation == "rows" else 1
            for c in cohort
        ]
        return [n / sum(rows) for n in rows]

    def batch(self, client: int, number: int) -> tuple[Tensor, Tensor]:
        batch = self.built.federation.client(client).party.feed.data.batch(number)
        return batch.inputs["pixel_values"].double(), batch.labels.long()

    def _plain(self, vector: Vector) -> Vector:
        return {
            name.removeprefix("bottom.").removeprefix("head.").removeprefix("body."): t for name, t in vector.items()
        }

    def hidden(self, theta: Vector, x: Tensor, blocks: int | None = None) -> Tensor:
        return self._run(theta, x, 0, self.cut if blocks is None else blocks)

    def _run(self, theta: Vector, x: Tensor, first: int, last: int | None) -> Tensor:
        return functional_call(
            _Blocks(self.whole, first, last), {f"whole.{n}": t for n, t in self._plain(theta).items()}, (x,)
        )

    def logits(self, top: Vector, hidden: Tensor, blocks: int | None = None) -> Tensor:
        return self._run(top, hidden, self.cut if blocks is None else blocks, None)

    def local_loss(self, theta: Vector, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Of the whole model, or of the bottom and a linear head on its means over places."""
        x, labels = batch
        if self.needs.holds == "whole":
            logits = self.logits(theta, self.hidden(theta, x))
        else:
            bottom = {n: t for n, t in theta.items() if n.startswith("bottom.")}
            pooled = self.hidden(bottom, x).mean(dim=(2, 3))
            logits = pooled @ theta["head.linear.weight"].T + theta["head.linear.bias"]
        return nn.functional.cross_entropy(logits, labels)

    def loss(self, theta: Vector, top: Vector, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.logits(top, self.hidden(theta, batch[0])), batch[1])

    def direction(self, like: Vector, *path: Any, client: int | None = None) -> Vector:
        seed = seed_for(self.config.seed, "direction", *path)
        seed = seed if client is None else seed_for(seed, "client", client)
        return {n: direction_of(seed, n, torch.zeros(t.shape)).double() for n, t in like.items()}


class _Blocks(nn.Module):
    def __init__(self, whole: Any, first: int, last: int | None) -> None:
        super().__init__()
        self.whole, self.first, self.last = whole, first, last

    def forward(self, x: Tensor) -> Tensor:
        x = self.whole.stem(x) if self.first == 0 else x
        for block in self.whole.blocks[self.first : self.last]:
            x = block(x)
        return self.whole.head(x) if self.last is None else x


def _gradient(loss: Callable[..., Tensor], *vectors: Vector) -> list[Vector]:
    leaves = [{n: t.detach().requires_grad_() for n, t in vector.items()} for vector in vectors]
    value = loss(*leaves)
    found = iter(torch.autograd.grad(value, [t for leaf in leaves for t in leaf.values()], allow_unused=True))
    return [{n: torch.zeros_like(t) if (g := next(found)) is None else g for n, t in leaf.items()} for leaf in leaves]


def _moved(theta: Vector, u: Vector, size: float) -> Vector:
    return {n: t + size * u[n] for n, t in theta.items()}


def _along(slopes: Sequence[float], units: Sequence[Vector]) -> Vector:
    return {n: sum(s * u[n] for s, u in zip(slopes, units, strict=True)) / len(slopes) for n in units[0]}  # type: ignore[misc]


def _inner(one: Vector, other: Vector) -> float:
    return sum((one[n] * other[n]).sum().item() for n in one if n in other)


def _rounds(w: World) -> Any:
    """Round, its cohort, their shares, and the batches of each client by place; a client goes on where it was."""
    cursor = dict.fromkeys(range(len(small.sources(w.built))), 0)
    for number in range(STEPS // LOCAL):
        cohort = w.cohort(number)
        batches = {c: [w.batch(c, cursor[c] + place) for place in range(LOCAL)] for c in cohort}
        for c in cohort:
            cursor[c] += LOCAL
        yield number, cohort, w.shares(cohort) if hasattr(w.options, "aggregation") else [], batches


def _central(loss: Callable[[Vector], Tensor], at: Vector, u: Vector, radius: float = RADIUS) -> float:
    with torch.no_grad():
        return (loss(_moved(at, u, radius)) - loss(_moved(at, u, -radius))).item() / (2 * radius)


def _by_slopes(w: World) -> None:
    """ho_sfl, ho_sfl_pipelined and frozen_bottom."""
    bottom, top = w.rule("bottom"), w.rule("top")
    for number, cohort, shares, batches in _rounds(w):
        late: list[tuple[Vector, int]] = []
        for place in range(LOCAL):
            step = number * LOCAL + place
            units = [w.direction(w.theta, "bottom", step, p) for p in range(P)]
            found = [_gradient(lambda a, b, c=c: w.loss(a, b, batches[c][place]), w.theta, w.top) for c in cohort]
            slopes = [sum(s * _inner(g[0], u) for s, g in zip(shares, found, strict=True)) for u in units]
            top.step(w.top, _mean([g[1] for g in found], shares), step)
            late.append((_along(slopes, units), step))
            if w.needs.agreement.name == "slopes" and (w.needs.turns != "pipelined" or len(late) > 1):
                bottom.step(w.theta, *late.pop(0))
        if w.needs.agreement.name == "slopes":
            for each in late:
                bottom.step(w.theta, *each)


def _zo(w: World) -> None:
    bottom, top = w.rule("bottom"), w.rule("top")
    for number, cohort, shares, batches in _rounds(w):
        for place in range(LOCAL):
            step = number * LOCAL + place

            def loss(theta: Vector, psi: Vector, place: int = place) -> Tensor:
                losses = [w.loss(theta, psi, batches[c][place]) for c in cohort]
                return sum(s * each for s, each in zip(shares, losses, strict=True))  # type: ignore[return-value]

            units = [w.direction(w.theta, "bottom", step, p) for p in range(P)]
            above = [w.direction(w.top, "top", step, p) for p in range(P)]
            slopes = [_central(lambda theta: loss(theta, w.top), w.theta, u) for u in units]
            own = [_central(lambda psi: loss(w.theta, psi), w.top, u) for u in above]
            bottom.step(w.theta, _along(slopes, units), step)
            top.step(w.top, _along(own, above), step)


def _hosl(w: World) -> None:
    bottom, top, row = w.rule("bottom"), w.rule("top"), 0
    for number, cohort, _, batches in _rounds(w):
        for c in cohort:
            for place in range(LOCAL):
                step, batch = number * LOCAL + place, batches[c][place]
                units = [w.direction(w.theta, "bottom", row, p) for p in range(P)]
                slopes = [_central(lambda theta: w.loss(theta, w.top, batch), w.theta, u) for u in units]
                top.step(w.top, _gradient(lambda psi: w.loss(w.theta, psi, batch), w.top)[0], step)
                bottom.step(w.theta, _along(slopes, units), step)
                row += 1


def _mu_splitfed(w: World) -> None:
    top, top_row = w.rule("top"), 0
    rules = {c: w.rule("bottom") for c in range(3)}
    for number, cohort, shares, batches in _rounds(w):
        own = {c: dict(w.theta) for c in cohort}
        for place in range(LOCAL):
            step = number * LOCAL + place
            hidden = {c: w.hidden(own[c], batches[c][place][0]).detach() for c in cohort}

            def loss(psi: Vector, place: int = place, hidden: dict[int, Tensor] = hidden) -> Tensor:
                each = [nn.functional.cross_entropy(w.logits(psi, hidden[c]), batches[c][place][1]) for c in cohort]
                return sum(s * one for s, one in zip(shares, each, strict=True))  # type: ignore[return-value]

            for _ in range(w.options.server_steps):
                units = [w.direction(w.top, "top", top_row, p) for p in range(P)]
                top.step(w.top, _along([_central(loss, w.top, u) for u in units], units), step)
                top_row += 1
            for c in cohort:
                units = [w.direction(w.theta, "bottom", rules[c].taken, p, client=c) for p in range(P)]
                slopes = [_central(lambda t, c=c: w.loss(t, w.top, batches[c][place]), own[c], u) for u in units]
                rules[c].step(own[c], _along(slopes, units), step)
        w.theta = _mean(list(own.values()), shares)


def _first_order(w: World) -> None:
    """split_lora, sfl_v1, sfl_v2 and vanilla_split."""
    top, rules = w.rule("top"), {c: w.rule("bottom") for c in range(3)}
    for number, cohort, shares, batches in _rounds(w):
        if w.name == "vanilla_split":
            for c in cohort:
                for place in range(LOCAL):
                    step = number * LOCAL + place
                    of_theta, of_top = _gradient(lambda a, b: w.loss(a, b, batches[c][place]), w.theta, w.top)
                    top.step(w.top, of_top, step)
                    rules[c].step(w.theta, of_theta, step)
            continue
        own = {c: dict(w.theta) for c in cohort}
        copies = {c: (dict(w.top), w.rule("top")) for c in cohort}
        for place in range(LOCAL):
            step, of_tops = number * LOCAL + place, []
            for c in cohort:
                psi, rule = copies[c] if w.name == "sfl_v1" else (w.top, top)
                of_theta, of_top = _gradient(lambda a, b, c=c: w.loss(a, b, batches[c][place]), own[c], psi)
                if w.name == "split_lora":
                    of_tops.append(of_top)
                else:
                    rule.step(psi, of_top, step)
                rules[c].step(own[c], of_theta, step)
            if of_tops:
                top.step(w.top, _mean(of_tops, shares), step)
        w.theta = _mean(list(own.values()), shares)
        if w.name == "sfl_v1":
            w.top = _mean([psi for psi, _ in copies.values()], shares)


def _own_loss(w: World) -> None:
    """cse_fsl, heron_sfl, fedavg and centralised."""
    top, rules = w.rule("top"), {c: w.rule("bottom") for c in range(3)}
    for number, cohort, shares, batches in _rounds(w):
        own = {c: dict(w.theta) for c in cohort}
        for place in range(LOCAL):
            step = number * LOCAL + place
            for c in cohort:
                if w.needs.holds == "auxiliary" and step % w.options.every == 0:
                    bottom = {n: t for n, t in own[c].items() if n.startswith("bottom.")}
                    loss = lambda psi, c=c, bottom=bottom: w.loss(bottom, psi, batches[c][place])  # noqa: E731
                    top.step(w.top, _gradient(loss, w.top)[0], step)
            for c in cohort:
                (g,) = _gradient(lambda theta, c=c: w.local_loss(theta, batches[c][place]), own[c])
                if not w.needs.backpropagates:
                    units = [w.direction(w.theta, "bottom", rules[c].taken, p, client=c) for p in range(P)]
                    g = _along([_inner(g, u) for u in units], units)
                rules[c].step(own[c], g, step)
        w.theta = _mean(list(own.values()), shares or [1.0])


def _whole_by_slopes(w: World) -> None:
    """decomfl, spry and mezo."""
    bottom = w.rule("bottom")
    for number, cohort, shares, batches in _rounds(w):
        agreed: list[Vector] = []
        own, rules = {c: dict(w.theta) for c in cohort}, {c: copy.deepcopy(bottom) for c in cohort}
        for place in range(LOCAL):
            step = number * LOCAL + place
            units = [w.direction(w.theta, "bottom", step, p) for p in range(P)]
            found = []
            for seat, c in enumerate(cohort):
                (g,) = _gradient(lambda theta, c=c: w.local_loss(theta, batches[c][place]), own[c])
                if w.name == "spry":
                    groups = w.federation.server.party.agreed.replica.groups
                    g = {n: g[n] for n in groups[(seat + number) % len(groups)]}
                found.append(_along([_inner(g, u) for u in units], [{n: u[n] for n in g} for u in units]))
                if w.name == "decomfl":
                    rules[c].step(own[c], found[-1], step)
            if w.name == "spry":
                agreed = [{n: t for each in found for n, t in each.items()}]
            else:
                agreed.append(_mean(found, shares or [1.0]))
            if w.name != "decomfl":
                bottom.step(w.theta, agreed[-1], step)
                own = {c: w.theta for c in cohort}
        for place, each in enumerate(agreed if w.name == "decomfl" else []):
            bottom.step(w.theta, each, number * LOCAL + place)


def _ho_fl(w: World) -> None:
    for number, cohort, shares, batches in _rounds(w):
        ends = []
        for c in cohort:
            theta, names = dict(w.theta), w.federation.server.party.cohort.boundaries[c].below
            below, above = w.rule("bottom"), w.rule("bottom")
            below.coupled = False  # it is replayed
            for place in range(LOCAL):
                step = number * LOCAL + place
                (g,) = _gradient(lambda t, c=c: w.local_loss(t, batches[c][place]), theta)
                units = [w.direction({n: theta[n] for n in names}, "bottom", step, p, client=c) for p in range(P)]
                above.step(theta, {n: t for n, t in g.items() if n not in names}, step)
                below.step(theta, _along([_inner(g, u) for u in units], units), step)
            ends.append(theta)
        w.theta = _mean(ends, shares)


EXACT = {"algorithm__directions": P, "algorithm__estimator": "forward_ad"}
PROBED = {"algorithm__directions": P, "algorithm__radius": RADIUS}
MOMENTUM = {"bottom__optimizer": "momentum", "bottom__lr": 1e-2}
# A weight near 1 is rounded at 6e-8 a step, on a way of 0.05 that all of them take together: measured 4e-6 to 1.2e-5.
ROUNDING = 3e-5
# A loss of 2.3 is rounded at 2e-7 a pass, so a difference over 2μ at 1e-4, of slopes near 1: measured 4e-5 to 3e-4.
PROBING = 1e-3
# method → its loop, its options, and how far a move may be from the loop's, relative to its length.
LOOPS: dict[str, tuple[Callable[[World], None], dict[str, Any], float]] = {
    "ho_sfl": (_by_slopes, EXACT, ROUNDING),
    "ho_sfl_pipelined": (_by_slopes, EXACT, ROUNDING),
    "frozen_bottom": (_by_slopes, {}, ROUNDING),
    "zo_sfl": (_zo, PROBED, PROBING),
    "hosl": (_hosl, PROBED, PROBING),
    "mu_splitfed": (_mu_splitfed, PROBED | {"algorithm__server_steps": 3}, PROBING),
    "split_lora": (_first_order, MOMENTUM, ROUNDING),
    "sfl_v1": (_first_order, MOMENTUM, ROUNDING),
    "sfl_v2": (_first_order, MOMENTUM, ROUNDING),
    "vanilla_split": (_first_order, MOMENTUM, ROUNDING),
    "cse_fsl": (_own_loss, MOMENTUM | {"algorithm__every": 2}, ROUNDING),
    "heron_sfl": (_own_loss, EXACT | {"algorithm__every": 2}, ROUNDING),
    "fedavg": (_own_loss, MOMENTUM, ROUNDING),
    "centralised": (_own_loss, MOMENTUM, ROUNDING),
    "decomfl": (_whole_by_slopes, EXACT, ROUNDING),
    "spry": (_whole_by_slopes, {"algorithm__directions": P}, ROUNDING),
    "mezo": (_whole_by_slopes, EXACT, ROUNDING),
    "ho_fl": (_ho_fl, EXACT | MOMENTUM | {"algorithm__boundaries": [1, 2]}, ROUNDING),
}


def test_every_method_has_a_loop() -> None:
    assert LOOPS.keys() == algorithms().keys() - {"fsl_sage"}  # whose alignment has tests of its own


@pytest.mark.parametrize("name", LOOPS)
def test_it_is_the_plain_loop(name: str) -> None:
    loop, options, tolerance = LOOPS[name]
    settings: dict[str, Any] = {"clients": 3, "steps": STEPS, "steps_per_round": LOCAL, "batch_size": 4}
    settings |= {"task__train_rows": 21, "partition__name": "dirichlet", "partition__alpha": 1.0, "seed": 5}
    settings |= {"bottom__optimizer": "adamw", "bottom__lr": 1e-3, "bottom__weight_decay": 0.1}
    settings |= {"bottom__schedule": "linear", "bottom__warmup": 1, "top__schedule": "cosine", "top__warmup": 2}
    settings |= {"top__optimizer": "momentum", "top__lr": 1e-2, "top__weight_decay": 0.05}
    w = World(name, settings | options)
    sizes = {len(batch[1]) for _, cohort, _, batches in _rounds(w) for c in cohort for batch in batches[c]}
    assert w.needs.agreement.name == "alone" or len(sizes) > 1, "batches of one size would not show how they count"
    begun = {"θ": dict(w.theta), "top": dict(w.top)}
    small.run(w.federation, STEPS // LOCAL, steps=LOCAL)
    w.federation.server.agreed_bottom()
    loop(w)
    server = w.federation.server.party
    for part, wanted, found in (
        ("θ", w.theta, server.agreed.replica.parameters),
        ("top", w.top, dict(server.top.module.named_parameters())),
    ):
        before = begun[part]
        moved = {n: found[n].detach().double() - t for n, t in before.items()}
        wish = {n: wanted[n] - t for n, t in before.items()}
        length = math.sqrt(sum(t.square().sum().item() for t in wish.values()))
        off = math.sqrt(sum((moved[n] - wish[n]).square().sum().item() for n in wish))
        assert length > 0 or not before or (part, name) == ("θ", "frozen_bottom")
        assert off <= tolerance * length, f"{part}: {off / max(length, 1e-30):.1e} of its way"
