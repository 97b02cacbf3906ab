"""Replay: everyone who knows the seeds and the agreed slopes rebuilds the same update, bit for bit (docs/protocol.md).

Many missed steps are taken in one pass over the parameters, pack by pack, so catching up needs no more memory than
taking one step. Learning rates are functions of the run's step alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfback_device.directions import Pack, gather, packs_of, scatter
from halfback_device.errors import PeerError
from halfback_device.messages import Array
from halfback_device.seeds import Directions, Seeds
from halfback_device.update import Schedule, UpdateRule, constant


@dataclass(frozen=True)
class RowForm:
    """What a row of agreed slopes is made of.

    Attributes:
        groups: names of the parameters that share slopes; a row has P slopes for each group in turn. A device may have
            no parameter of a group. None for one group of all that are not `exact`.
        exact: names of the parameters whose gradient is agreed on as it is; a row ends with their gradients.
    """

    groups: Sequence[Sequence[str]] | None = None
    exact: Sequence[str] = ()


PLAIN = RowForm()


class Replica:
    """Parameters that every party moves alike, with the optimiser's moments and the number of rows taken.

    A row's number gives the directions and the age of moments; the run's step gives the learning rate.

    Attributes:
        parameters: name → contiguous float32 array, moved in place.
        position: rows replayed so far; the next agreed row is number `position`.
        moments: moment → name → array.
        groups, exact: as in `RowForm`.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        rule: UpdateRule,
        directions: Directions,
        *,
        schedule: Schedule = constant,
        form: RowForm = PLAIN,
    ) -> None:
        """`schedule(step)`: the learning rate's factor by step of the run."""
        self.parameters = dict(parameters)
        if bad := [n for n, p in self.parameters.items() if p.dtype != np.float32 or not p.flags.c_contiguous]:
            raise ValueError(f"{bad[0]} is no contiguous array of float32")
        self.rule = rule
        self.directions = directions
        self.schedule = schedule
        self.exact = list(form.exact)
        along = [name for name in self.parameters if name not in self.exact]
        self.groups = [along] if form.groups is None else [list(names) for names in form.groups]
        self.position = 0
        self.moments: dict[str, dict[str, Array]] = {
            moment: {name: np.zeros_like(p) for name, p in self.parameters.items()} for moment in rule.moments()
        }

    @property
    def measured(self) -> dict[str, Array]:
        """The parameters along which slopes are taken: all but the exact ones."""
        return {name: p for name, p in self.parameters.items() if name not in self.exact}

    def seeds(self, directions: int, step: int | None = None) -> Seeds:
        """The first `directions` of a row: of the one to be replayed next, unless another is named."""
        return self.directions.of(self.position if step is None else step, directions)

    def width(self, directions: int) -> int:
        """Values of a row: `directions` slopes of each group, and the exact gradients."""
        return directions * len(self.groups) + sum(self.parameters[name].size for name in self.exact)

    def replay(self, first: int, rows: Array, steps: Sequence[int] | None = None) -> None:
        """Takes the agreed rows `first`, `first` + 1, …, (rows, groups · P + exact gradients) float32.

        `steps`: of the run, that of each row; their numbers, if none are given. Rows that were already taken are
        ignored, so a repeated message is harmless.

        Raises:
            PeerError: rows in between are missing; or they are no rows.
        """
        count, given = len(self.groups), self.width(0)
        measured = rows.shape[1] - given if rows.ndim == 2 else 0
        wrong = measured < 0 or measured % count or not (measured or given)
        if rows.ndim != 2 or (len(rows) and wrong) or first < 0:
            wanted = ("P" if count == 1 else f"{count} · P") + (f" + {given}" if given else "")
            raise PeerError("history", f"{rows.shape} from step {first}", f"(steps, {wanted}) from step 0 is allowed")
        new, at = self._untaken(first, rows, steps)
        if not len(new):
            return
        if measured:
            self._replay_measured(new[:, :measured], at)
        if given:
            self._replay_given(new[:, measured:], at)
        self.position += len(new)

    def take_state(self, first: int, slopes: Array, exact: Sequence[Array]) -> None:
        """Takes rows as `replay` does, from the slopes (rows, groups · P) alone: `exact` is the rest behind the last.

        Raises:
            PeerError: rows in between are missing.
        """
        new, at = self._untaken(first, slopes, None)
        if not len(new):
            return
        if slopes.shape[1]:
            self._replay_measured(new, at)
        for mine, theirs in zip(self.exact_state().values(), exact, strict=True):
            mine[...] = theirs
        self.position += len(new)

    def exact_state(self) -> dict[str, Array]:
        """All that exact gradients move: the parameters by name, then each of their moments by moment and name."""
        state = {name: self.parameters[name] for name in self.exact}
        for moment in self.rule.moments():
            state |= {f"{moment}.{name}": self.moments[moment][name] for name in self.exact}
        return state

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Parameters and moments, which are not copied, and the position: all that the next rows depend on."""
        arrays = {f"theta.{name}": p for name, p in self.parameters.items()}
        for moment, by_name in self.moments.items():
            arrays |= {f"moment.{moment}.{name}": p for name, p in by_name.items()}
        return arrays, {"position": self.position}

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        for name, mine in self.state()[0].items():
            mine[...] = arrays[name]
        self.position = values["position"]

    def _untaken(self, first: int, rows: Array, steps: Sequence[int] | None) -> tuple[Array, Sequence[int]]:
        """Those of the rows from number `first` on that are still to be taken, and their steps."""
        steps = range(first, first + len(rows)) if steps is None else steps
        if len(steps) != len(rows):
            raise ValueError(f"{len(steps)} steps are given for {len(rows)} rows")
        if first > self.position:
            raise PeerError("history", f"rows begin at step {first}, but this replica is at step {self.position}")
        return rows[self.position - first :], steps[self.position - first :]

    def _replay_measured(self, rows: Array, steps: Sequence[int]) -> None:
        """The groups' steps, from their slopes (rows, groups · P)."""
        count = rows.shape[1] // len(self.groups)
        seeds = [seed for i in range(len(rows)) for seed in self.directions.of(self.position + i, count).numbers]
        for place, names in enumerate(self.groups):
            own = {name: self.parameters[name] for name in names if name in self.parameters}
            dimension = sum(parameter.size for parameter in own.values())
            of_group = rows[:, place * count : (place + 1) * count].tolist()
            coefficients = [self.rule.coefficients(row, dimension) for row in of_group]
            for pack in packs_of(own):
                self._replay_pack(pack, self._estimates(pack, coefficients, seeds), steps)

    def _estimates(self, pack: Pack, coefficients: list[list[float]], seeds: list[int]) -> Iterator[Array]:
        """ĝ of each step, (width,): the sum of its directions times their coefficients, from the first on."""
        made = pack.directions(seeds, self.directions.law)
        for row in coefficients:
            gradient = next(made).times(row[0])
            for coefficient in row[1:]:
                gradient += next(made).times(coefficient)
            yield gradient

    def _replay_given(self, rows: Array, steps: Sequence[int]) -> None:
        """The steps of the parameters whose gradients are known, (rows, values)."""
        own = {name: self.parameters[name] for name in self.exact}
        scales = [self.rule.exact_scale(row) for row in rows]
        ends = np.cumsum([parameter.size for parameter in own.values()])[:-1]
        of_rows = [dict(zip(own, np.split(row, ends), strict=True)) for row in rows]
        for pack in packs_of(own):
            scaled = (gather(row, pack) * np.float32(scale) for row, scale in zip(of_rows, scales, strict=True))
            self._replay_pack(pack, scaled, steps)

    def _replay_pack(self, pack: Pack, gradients: Iterator[Array], steps: Sequence[int]) -> None:
        """Takes a pack's next rows on `gradients`, (width,) each, which are used up."""
        values = gather(self.parameters, pack)
        moments = [gather(by_name, pack) for by_name in self.moments.values()]
        # What a run has come to may overflow: then it has diverged, which is found where the values are used.
        with np.errstate(all="ignore"):
            for place, step in enumerate(steps):
                gradient = next(gradients)
                self.rule.step(values, gradient, moments, self.position + place + 1, self.rule.lr * self.schedule(step))
                del gradient  # before the next one is made
        scatter(values, self.parameters, pack)
        for by_name, changed in zip(self.moments.values(), moments, strict=True):
            scatter(changed, by_name, pack)
