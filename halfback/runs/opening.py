"""From a run's folder to the objects that go on with it, and on to its summary."""

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from halfback.assembly import Built, build, clear_scratch
from halfback.assembly.fingerprint import check_same
from halfback.assembly.given import NOTHING, Given
from halfback.assembly.places import placed
from halfback.config import RunConfig
from halfback.engine.attendance import Attendance, rounds_of
from halfback.engine.kept import going_on
from halfback.engine.state import load_server
from halfback.errors import Diverged, UserError
from halfback.planning.clock import Clock
from halfback.runs import devices, simulated, standing
from halfback.runs.folder import CHECKPOINT, COHORTS, PRETRAINED, config_of
from halfback.runs.locks import unchanging
from halfback.runs.summary import Summary, summary_of
from halfback.runs.told import OnRound, Told
from halfback.runs.training import Engine, Training
from halfback.telemetry.records import SUMMARY, write_summary

log = logging.getLogger(__name__)

Which = Literal["last", "best"]
"""Of a run's checkpoints: where it stands, or that of its best evaluation, where it keeps that."""
Found = tuple[int, dict[str, Tensor], dict[str, Any]]
"""A checkpoint: its round, tensors and plain values."""


@dataclass(frozen=True)
class Caller:
    """What a run's caller gives beside its configuration; none of it is in the run's folder.

    Attributes:
        on_round: who is told of each round. on_rows: who is told how far an evaluation is. on_evaluation: who is told
            of each evaluation, before the checkpoint behind it.
        given: parts that are Python objects, which the configuration calls "given".
        like: the fingerprint of a run that this one is to be compared with.
        pretrained: weights that another run of the same pretraining made; the file is copied.
        engine: what carries the rounds, where the clients are on other machines.
        cohorts: the file of a run that this one repeats, with who took part in each round; it is copied.
    """

    on_round: OnRound | None = None
    on_rows: Callable[[RunConfig, int, int], object] | None = None
    on_evaluation: OnRound | None = None
    given: Given | None = None
    like: Mapping[str, str] | None = None
    pretrained: Path | None = None
    engine: Callable[[Built], Engine] | None = None
    cohorts: Path | None = None


@dataclass(frozen=True)
class Opening:
    """A run in the folder `out`, about to be built and carried to its end.

    Attributes:
        weights: the file of the pretrained weights, which is made where it is not there.
        start: the folder that relative paths are from, None where nobody needs to know; a checkpoint knows better.
    """

    out: Path
    weights: Path
    start: Path | None = None
    caller: Caller = field(default_factory=Caller)

    def built(self, config: RunConfig, found: Found | None, *, scratch: Path | None = None) -> Built:
        """Everything that the run needs, from the files that it began with; UserError where they have changed."""
        built = replace(
            build(self._placed(config, found), pretrained=self.weights, scratch=scratch, given=self.caller.given),
            config=config,
        )
        if found is not None:
            kept = found[2]["fingerprint"]
            if lost := sorted(built.fingerprint.keys() ^ kept.keys()):
                what = f"values.json: fingerprint: {lost[0]} is due"
                raise UserError(f"checkpoint {self.out / CHECKPOINT} can't be read: {what}")
            check_same(kept, built.fingerprint, self.out)
        return built

    def _placed(self, config: RunConfig, found: Found | None) -> RunConfig:
        """The configuration with the paths of the files that the run began with."""
        start = self._start(found)
        return config if start is None else placed(config, start)

    def training(self, config: RunConfig, found: Found | None) -> Training:
        """The run from its first record on, or from a checkpoint on."""
        built = self.built(config, found, scratch=self.out)
        if self.caller.like is not None:
            check_same(self.caller.like, built.fingerprint, "what this run is compared with")
        clock: Clock | None = None
        engine: Engine
        if self.caller.engine is not None:
            engine = self.caller.engine(built)
        elif config.client.runtime == "device":
            engine = devices.engine(built, self.out)
            engine.attendance = self._attendance(config)
        else:
            built.clients.settle()
            engine = built.federation
            engine.attendance = self._attendance(config)
            engine.one_pass = engine.one_pass and engine.attendance is None  # clients that were apart
            here = self._placed(config, found)
            clock = simulated.clock_of(here, self.caller.given or NOTHING, self.out, self._start(found))
            built.federation.tap = None if clock is None else clock.hear
        training = Training(built, self.out, engine, self._start(found), self._told, clock)
        if found is None:
            training.begin()
        else:
            training.load(*found)
        return training

    @property
    def _told(self) -> Told:
        return Told(self.caller.on_round, self.caller.on_rows, self.caller.on_evaluation)

    def _attendance(self, config: RunConfig) -> Attendance | None:
        """Who takes part in each round of a run that repeats another one."""
        path = self.out / COHORTS
        return dict(enumerate(rounds_of(path, config.clients))) if path.exists() else None

    def carried_on(self) -> Summary:
        """Goes on from the folder's checkpoint, or begins where there is none, up to the summary."""
        clear_scratch(self.out)
        config = config_of(self.out)
        found = standing.load(config, self.out)
        if found is not None and (self.out / SUMMARY).exists():
            if found[2]["step"] < config.steps and found[2].get("ended") is None:
                raise UserError(f"{self.out / SUMMARY} is there, but the checkpoint is that of step {found[2]['step']}")
            log.info("%s: complete%s", self.out, _said(found[2]))
            return standing.finished(config, self.out)
        if found is None:
            _check_place(self.out / CHECKPOINT)
        else:
            over = found[2].get("ended")
            if over is None:
                log.info("%s: continuing from step %d of %d", self.out, found[2]["step"], config.steps)
            else:
                log.info("%s: %s; what is left is its summary", self.out, over)
        return self.finished(self.training(config, found))

    def finished(self, training: Training) -> Summary:
        """Carries out all rounds that are left, and writes the summary."""
        with closing(training):
            try:
                training.to_the_end()
            except Diverged as error:
                error.after_step = training.step
                raise
            summary = summary_of(training.built, self.out, training.ended)
            training.finish(summary.to_dict())
            write_summary(self.out, summary.to_dict())
        return summary

    def _start(self, found: Found | None) -> Path | None:
        if found is None:
            return self.start
        return None if found[2].get("start") is None else Path(found[2]["start"])


def reload(out: Path, given: Given | None = None, which: Which = "last") -> Built:
    """The model and the parties as a checkpoint in `out` left them: the last one, or that of the best evaluation.

    Raises:
        UserError: `out` holds no run, or no such checkpoint of its configuration.
    """
    if which not in get_args(Which):
        raise UserError(f"checkpoint={which}: {' or '.join(get_args(Which))} is allowed")
    config = config_of(out)
    with unchanging(out):
        if which == "best" and not config.keep_best:
            raise UserError(f"{out} kept no best checkpoint: it ran with keep_best=false; the last one is there")
        found = standing.load(config, out) if which == "last" else standing.load_best(config, out)
        if found is None:
            way = f"continue it with `halfback resume {out}`"
            raise UserError(f"{out} has no {'best ' if which == 'best' else ''}checkpoint yet; {way}")
        built = Opening(out, out / PRETRAINED, caller=Caller(given=given)).built(config, found)
        if (
            which == "best" or "deployment" in found[2]
        ):  # the clients' own states are where they are, and a model is the server's to tell
            with going_on():
                load_server(built.federation.server, found[1], found[2])
        else:
            built.federation.load_state(found[1], found[2])
    built.federation.server.agreed_bottom()
    return built


def _said(values: Mapping[str, Any]) -> str:
    """Why a run is over before its steps are done, behind a word about it."""
    return "" if values.get("ended") is None else f", {values['ended']}; a new run may have other settings"


def _check_place(folder: Path) -> None:
    """Refuses what no checkpoint can be written into, before the records of what was there are taken away."""
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise UserError(f"checkpoint {folder} can't be read: it is no folder")
