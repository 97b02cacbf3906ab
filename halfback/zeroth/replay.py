"""Replay: everyone who knows the seeds and the agreed slopes rebuilds the same update, bit for bit.

ĝ = (1/P) Σ_p v̄_p u_p (HO-SFL, arXiv 2603.14773, step 6), taken through SGD, momentum or AdamW. Nothing here depends on
the order in which parameters are visited or on how they are packed, so many missed steps are replayed in
one pass over the parameters, and the result has the bits of one step at a time. Learning rates are functions of the
step alone, so that whoever replays a step later takes the same rate.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from halfback.errors import PeerError
from halfback.zeroth import native
from halfback.zeroth.directions import (
    PACK_WIDTH,
    Directions,
    Pack,
    Seeds,
    gather,
    native_table,
    packs_of,
    scatter,
)
from halfback.zeroth.update import UpdateRule

Schedule = Callable[[int], float]
Shape = Literal["constant", "linear", "cosine", "multistep"]


def constant(step: int) -> float:
    """The schedule that leaves the learning rate as it is."""
    return 1.0


@dataclass(frozen=True)
class Falls:
    """Where a multistep schedule falls.

    Attributes:
        milestones: steps from which on the learning rate is `gamma` times what it was before, in rising order.
        gamma: above 0, up to 1.
    """

    milestones: Sequence[int] = ()
    gamma: float = 0.1


NEVER = Falls()


def schedule(shape: Shape, *, warmup: int, total: int, falls: Falls = NEVER) -> Callable[[int], float]:
    """Step from 0 on → factor of the learning rate.

    It rises in a line over the first `warmup` steps, and then stays at 1, or falls to 0 at step `total` in a line or a
    half cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts), or by a factor at each milestone (torch's
    MultiStepLR). That product is taken factor by factor, so that whoever takes it has its bits.
    """
    return partial(_factor, shape, warmup, total, falls)


def _factor(shape: Shape, warmup: int, total: int, falls: Falls, step: int) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if shape == "constant":
        return 1.0
    if shape == "multistep":
        factor = 1.0
        for milestone in falls.milestones:
            factor *= falls.gamma if step >= milestone else 1.0
        return factor
    gone = min((step - warmup) / max(total - warmup, 1), 1.0)
    return 1 - gone if shape == "linear" else (1 + math.cos(math.pi * gone)) / 2


@dataclass(frozen=True)
class RowForm:
    """What a row of agreed slopes is made of.

    Attributes:
        groups: names of the parameters that share slopes; a row has P slopes for each group in turn. A group may be one
            of which a replica has no parameter: a device with fewer blocks than others. None for one group of all that
            are not `exact`.
        exact: names of the parameters whose gradient is agreed on as it is, and not along directions; a row ends with
            their gradients, which are the slopes along the coordinate axes.
    """

    groups: Sequence[Sequence[str]] | None = None
    exact: Sequence[str] = ()


PLAIN = RowForm()


class Replica:
    """Parameters that every party moves alike, with the optimiser's moments and the number of steps taken.

    A row's number counts what was taken here: it gives the directions, and the moments their age. The run's step gives
    the learning rate. They are one and the same where everyone replays one row for each step of the run.

    Attributes:
        parameters: name → parameter; moved in place.
        position: rows replayed so far; the next agreed row is number `position`.
        own_pace: a row's number is not the step of the run that it belongs to, as where a client has rows of its own or
            a step has several: who replays must say the steps.
        groups, exact: as in `RowForm`, of this replica's rows.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        rule: UpdateRule,
        directions: Directions,
        *,
        schedule: Schedule = constant,
        form: RowForm = PLAIN,
        own_pace: bool = False,
    ) -> None:
        """`schedule(step)`: the learning rate's factor by step of the run."""
        self.parameters = dict(parameters)
        self.rule = rule
        self.directions = directions
        self.schedule = schedule
        self.own_pace = own_pace
        self.exact = list(form.exact)
        along = [name for name in self.parameters if name not in self.exact]
        self.groups = [along] if form.groups is None else [list(names) for names in form.groups]
        self.position = 0
        self.dimension = sum(parameter.numel() for parameter in self.parameters.values())
        self.moments: dict[str, dict[str, Tensor]] = {
            moment: {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
            for moment in rule.moments()
        }

    def alike(self, parameters: Mapping[str, Tensor], **changes: Any) -> "Replica":
        """Another one at its start, of these parameters, with the same settings but for `changes`."""
        same = {name: getattr(self, name) for name in ("rule", "directions", "schedule", "own_pace")}
        return Replica(parameters, **(same | {"form": RowForm(self.groups, self.exact)} | changes))

    def seeds(self, directions: int, *, step: int | None = None) -> Seeds:
        """The first `directions` of a step: of the one to be replayed next, unless another is named."""
        return self.directions.of(self.position if step is None else step, directions)

    def width(self, directions: int) -> int:
        """Values of a row of the history: `directions` slopes of each group, and the exact gradients."""
        return directions * len(self.groups) + sum(self.parameters[name].numel() for name in self.exact)

    @torch.no_grad()
    def replay(self, first: int, slopes: Tensor, steps: Sequence[int] | None = None) -> None:
        """Takes the rows `first`, `first` + 1, … of the agreed `slopes` (steps, groups · P + exact gradients).

        `steps`: of the run, that of each row; their numbers, if none are given. Rows that were already taken are
        ignored, so a repeated message is harmless.

        Raises:
            PeerError: the rows begin after `position`: steps in between are missing; or they are no rows.
            ValueError: no steps are given, and a row's number is not its step (`own_pace`).
        """
        count, given = len(self.groups), self.width(0)
        measured = slopes.shape[1] - given if slopes.ndim == 2 else 0
        wrong = measured < 0 or measured % count or not (measured or given)
        if slopes.ndim != 2 or (len(slopes) and wrong) or first < 0:
            wanted = ("P" if count == 1 else f"{count} · P") + (f" + {given}" if given else "")
            came = f"{tuple(slopes.shape)} from step {first}"
            raise PeerError("history", came, f"(steps, {wanted}) from step 0 is allowed")
        new, at = self._untaken(first, slopes), self._steps_of_untaken(first, len(slopes), steps)
        if not len(new):
            return
        if measured:
            self._replay_measured(new[:, :measured], at)
        if given:
            self._replay_given(new[:, measured:], at)
        self.position += len(new)

    def _steps_of_untaken(self, first: int, count: int, steps: Sequence[int] | None) -> Sequence[int]:
        """The run's steps of the rows that `_untaken` leaves."""
        if steps is None:
            if self.own_pace:
                raise ValueError("these rows are not numbered as the run's steps, so these must be given")
            steps = range(first, first + count)
        if len(steps) != count:
            raise ValueError(f"{len(steps)} steps are given for {count} rows")
        return steps[self.position - first :]

    def _untaken(self, first: int, rows: Tensor) -> Tensor:
        """Those of the rows from step `first` on that are still to be taken; raises as `replay` does."""
        if first > self.position:
            raise PeerError("history", f"rows begin at step {first}, but this replica is at step {self.position}")
        return rows[self.position - first :]

    def exact_state(self) -> dict[str, Tensor]:
        """All that exact gradients move: the parameters by name, then each of their moments by moment and name."""
        state = {name: self.parameters[name] for name in self.exact}
        for moment in self.rule.moments():
            state |= {f"{moment}.{name}": self.moments[moment][name] for name in self.exact}
        return state

    @torch.no_grad()
    def take_state(self, first: int, slopes: Tensor, exact: Sequence[Tensor]) -> None:
        """Takes steps as `replay` does, from the slopes (steps, groups · P) alone: `exact` is the rest behind the last.

        Raises:
            PeerError: steps in between are missing.
        """
        new, at = self._untaken(first, slopes), self._steps_of_untaken(first, len(slopes), None)
        if not len(new):
            return
        if slopes.shape[1]:
            self._replay_measured(new, at)
        for mine, theirs in zip(self.exact_state().values(), exact, strict=True):
            mine.copy_(theirs)
        self.position += len(new)

    def _replay_measured(self, rows: Tensor, steps: Sequence[int]) -> None:
        """The groups' steps, from their slopes (steps, groups · P)."""
        directions = rows.shape[1] // len(self.groups)
        seeds = [s for i in range(len(rows)) for s in self.directions.of(self.position + i, directions).numbers]
        rates = self._rates(steps)
        for names, of_group in zip(self.groups, rows.split(directions, dim=1), strict=True):
            own = {name: self.parameters[name] for name in names if name in self.parameters}
            dimension = sum(parameter.numel() for parameter in own.values())
            coefficients = [self.rule.coefficients(row, dimension) for row in of_group.tolist()]
            for pack in packs_of(own):
                one = own[pack.segments[0].name]
                if native.serves(one.device) and one.dtype == torch.float32 and self.rule.optimizer in native.KINDS:
                    take = partial(native.replay, self._fused(seeds, coefficients, rates), pack.stretches)
                else:
                    take = partial(self._take, self._estimates(pack, coefficients, seeds, one.device), rates, one.dtype)
                self._replay_pack(pack, take)

    def _fused(self, seeds: list[int], coefficients: list[list[float]], rates: list[float]) -> native.Steps:
        """The steps as the kernel takes them all at once."""
        decays, table = [self.rule.decay(lr) for lr in rates], native_table(self.directions.law)
        return native.Steps(seeds, coefficients, table, self.rule.optimizer, decays, rates, self.rule.momentum)

    def _replay_given(self, rows: Tensor, steps: Sequence[int]) -> None:
        """The steps of the parameters whose gradients are known, (steps, values)."""
        own = {name: self.parameters[name] for name in self.exact}
        scales = [self.rule.exact_scale(row) for row in rows]
        sizes = [parameter.numel() for parameter in own.values()]
        gradients = dict(zip(own, rows.split(sizes, dim=1), strict=True))
        rates = self._rates(steps)
        for pack in packs_of(own):
            one = own[pack.segments[0].name]
            of_rows = ({name: rows[i] for name, rows in gradients.items()} for i in range(len(rows)))
            placed = (gather(row, pack, one.device) for row in of_rows)
            scaled = (values * scale for values, scale in zip(placed, scales, strict=True))
            self._replay_pack(pack, partial(self._take, scaled, rates, one.dtype))

    def _rates(self, steps: Sequence[int]) -> list[float]:
        return [self.rule.lr * self.schedule(step) for step in steps]

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """What is replayed inside is undone at the end, to the bit: from copies, not by arithmetic."""
        states = [self.parameters, *self.moments.values()]
        kept = [{name: tensor.detach().clone() for name, tensor in state.items()} for state in states]
        position = self.position
        try:
            yield
        finally:
            with torch.no_grad():
                for state, before in zip(states, kept, strict=True):
                    for name, tensor in state.items():
                        tensor.copy_(before[name])
            self.position = position

    def _replay_pack(self, pack: Pack, take: Callable[[Tensor, list[Tensor]], None]) -> None:
        """Has a pack's next rows taken: `take` moves its values and moments in place, (width,) float32 each."""
        device = self.parameters[pack.segments[0].name].device
        values = gather(self.parameters, pack, device)
        moments = [gather(by_name, pack, device) for by_name in self.moments.values()]
        take(values, moments)
        scatter(values, self.parameters, pack)
        for by_name, changed in zip(self.moments.values(), moments, strict=True):
            scatter(changed, by_name, pack)

    def _take(
        self,
        gradients: Iterator[Tensor],
        rates: Sequence[float],
        dtype: torch.dtype,
        values: Tensor,
        moments: list[Tensor],
    ) -> None:
        """Takes steps on `gradients`, (width,) float32 each: used up."""
        for count, lr in enumerate(rates, start=self.position + 1):
            gradient = next(gradients)
            self.rule.step(values, gradient, moments, count, lr)
            del gradient  # before the next step's directions are made (`zip` would keep it)
            if dtype != torch.float32:  # as a client that takes one step at a time does
                values.copy_(values.to(dtype))

    def _estimates(
        self, pack: Pack, coefficients: list[list[float]], seeds: list[int], device: torch.device
    ) -> Iterator[Tensor]:
        """ĝ of each step: the sum of its directions times their coefficients."""
        if native.serves(device):
            table = native_table(self.directions.law)
            for step, row in enumerate(coefficients):
                gradient = torch.empty(pack.width, dtype=torch.float32, device="cpu")
                alone = native.Steps(seeds[step * len(row) : (step + 1) * len(row)], [row], table)
                native.replay(alone, pack.stretches, gradient, ())
                yield gradient
                del gradient
            return
        directions = self._directions(pack, coefficients, seeds, device)
        for row in coefficients:
            gradient = next(directions)
            for _ in row[1:]:
                gradient += next(directions)
            yield gradient
            del gradient

    def _directions(
        self, pack: Pack, coefficients: list[list[float]], seeds: list[int], device: torch.device
    ) -> Iterator[Tensor]:
        """Each seed's direction times its coefficient.

        Those of a step are made together, if the scratch memory allows it; never those of several, so that catching up
        needs no more memory than taking one step.
        """
        # Half a megabyte, or a sixteenth of the parameters: a call costs as much as a hundred thousand values.
        at_once = max(1, max(PACK_WIDTH, self.dimension // 16) // pack.width)
        for step, row in enumerate(coefficients):
            own = seeds[step * len(row) : (step + 1) * len(row)]
            for begin in range(0, len(row), at_once):
                chosen = slice(begin, begin + at_once)
                yield from pack.directions(own[chosen], law=self.directions.law, device=device, scales=row[chosen])
