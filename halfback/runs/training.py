"""A run while it goes: its rounds one after the other, with the records and the checkpoints between them."""

import logging
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from halfback import config as configuration
from halfback.assembly import Built, clear_scratch
from halfback.engine import checkpoint
from halfback.engine.state import state_of_server
from halfback.errors import BudgetSpent, CohortLost, Diverged, UserError
from halfback.parties.holdings import Round
from halfback.planning.clock import Clock
from halfback.runs import standing
from halfback.runs.folder import BEST, CHECKPOINT
from halfback.runs.interrupts import Asked, Interrupts
from halfback.runs.stopping import Watch, keep_account, used_up
from halfback.runs.told import RunState, Told
from halfback.telemetry.records import Record, read_records, truncate_records
from halfback.telemetry.sinks import Sink, sinks_of

_STEPS_BACK = 20  # to one checkpoint in a row, until a run with lost clients gives up

log = logging.getLogger(__name__)


class Engine(Protocol):
    """What carries a run's rounds: the federation in one process, or its server with clients elsewhere."""

    def run_round(self, round: Round, *, measure_memory: bool) -> float: ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None: ...


class Training:
    """Where a run stands, and what is done with that: rounds, evaluations, checkpoints."""

    def __init__(
        self,
        built: Built,
        out: Path,
        engine: Engine,
        start: Path | None,
        told: Told,
        clock: Clock | None = None,
    ) -> None:
        """`start`: the folder that the configuration's relative paths are from, None where nobody needs to know.

        `clock`: of a fleet, which hears what the engine's links carry; None where there is none.
        """
        self.built = built
        self.config = built.config
        self.out = out
        self.engine = engine
        self.start = start
        self.told = told
        self.clock = clock
        self.round = 0
        self.step = 0
        self.losses: list[float] = []  # of the rounds since the last record
        self.seconds_before = 0.0
        self.started = time.perf_counter()
        self.sinks: list[Sink] = []
        self.first: Record | None = None  # before training, of which nobody has been told yet
        self.saved = -1  # the round of the last checkpoint
        self.saved_at = self.started
        self.steps_back = 0  # in a row, to the same checkpoint
        self.ended: str | None = None  # why, where it is over before its steps are done
        self.watch = Watch(self.config, built.task.objective)

    def begin(self) -> None:
        """The first record and the first checkpoint, before anything is trained."""
        keep_account(self.built, self.out, 0)
        truncate_records(self.out, -1)
        rows, chosen = len(self.built.task.validation), self.config.first_eval_rows
        self.first = self._evaluated(None if chosen is None or chosen >= rows else chosen)
        self.save()
        if self.watch.saw(self.first):
            self._keep_best()

    def load(self, round_number: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Goes on from a checkpoint, as `checkpoint.load` has it."""
        keep_account(self.built, self.out, values["step"])
        self.engine.load_state(tensors, values)
        self.round, self.step, self.losses = round_number, values["step"], values["losses"]
        self.saved, self.ended = round_number, values.get("ended")
        if self.clock is not None:
            self.clock.seconds = values["simulated_seconds"]
            self.clock.void()
        self.seconds_before, self.started = values["wall_seconds"], time.perf_counter()
        truncate_records(self.out, round_number)
        self.watch = Watch(self.config, self.built.task.objective)
        for record in read_records(self.out):
            self.watch.saw(record)
        # What ended it may have come between this checkpoint and its copy.
        if self.watch.round == self.round and checkpoint.rounds(self.out / BEST) != [self.round]:
            self._keep_best()

    def to_the_end(self) -> None:
        """All rounds that are left.

        Ctrl-C, SIGTERM, or an exception of whoever is told of a round, leaves a checkpoint of the last whole round.
        """
        rounds = math.ceil(self.config.steps / self.config.steps_per_round)
        with Interrupts() as interrupts:
            if self.first is not None:
                self._tell(self.first)
            while self.round < rounds and self.ended is None:
                try:
                    self._run_round(rounds)
                except CohortLost as error:
                    self._go_back(error)
                except BudgetSpent as error:
                    self._end_here(error)
                if interrupts.asked:
                    self._keep()
                    raise Asked(self.step, interrupts.asked)

    def save(self) -> None:
        """Writes a checkpoint of the round that has just ended."""
        tensors, values = self.engine.state()
        if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
            raise Diverged(
                f"step {self.step}: {broken[0]} is not finite; lower the learning rates (top.lr, bottom.lr) or clip "
                "(top.clip, bottom.clip). The last checkpoint is kept"
            )
        checkpoint.save(self.out / CHECKPOINT, self.round, tensors, values | self._standing())
        self.saved, self.steps_back, self.saved_at = self.round, 0, time.perf_counter()

    def _standing(self) -> dict[str, Any]:
        """What a checkpoint says beside the engine's own values."""
        return {
            "config": configuration.to_tree(self.config),
            "step": self.step,
            "losses": self.losses,
            "wall_seconds": self._seconds(),
            "simulated_seconds": self._simulated(),
            "fingerprint": dict(self.built.fingerprint),
            "start": None if self.start is None else str(self.start),
            "ended": self.ended,
        }

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Tells whoever has the records what the run came to."""
        for sink in self._open_sinks():
            sink.finish(summary)

    def close(self) -> None:
        """Ends the files of records, and removes what codecs kept on disk."""
        self._close_sinks()
        clear_scratch(self.out)

    def _run_round(self, rounds: int) -> None:
        config, server = self.config, self.built.federation.server
        steps = min(config.steps_per_round, config.steps - self.step)
        round = Round(self.round, steps, self.step)
        passes = server.meters.forward_passes
        loss = self.engine.run_round(round, measure_memory=self.round % config.memory_every == 0)
        if self.clock is not None:
            self.clock.end_round(steps, server.meters.forward_passes - passes)
        self.losses.append(loss)
        self.round += 1
        self.step += steps
        if self.round < rounds:
            self.ended = self._spent()
        last = self.round == rounds or self.ended is not None
        is_due = last or self.round % config.eval_every == 0
        record = self._evaluated() if is_due else self._record(None, None)
        server.steer(round, train_loss=loss, validation_loss=record.validation_loss)
        is_best = is_due and self.watch.saw(record)
        if not last and self.watch.is_over:
            self.ended, last = self._says(self.watch.why(self.built.task.metric)), True
        is_late = time.perf_counter() - self.saved_at > config.checkpoint_seconds
        if last or is_late or (is_best and config.keep_best) or self.round % config.checkpoint_every == 0:
            self.save()
        if is_best:
            self._keep_best()
        if self.ended is not None:
            log.info("%s: %s", self.out, self.ended)
        self._tell(record)

    def _end_here(self, error: BudgetSpent) -> None:
        """The run is over behind the round before, since a private one may release no more."""
        if self.round == 0:
            raise UserError(f"nothing was trained: {error}")
        self.ended = self._says(str(error))
        log.info("%s: %s", self.out, self.ended)
        record = self._evaluated() if self.losses else None  # else there was an evaluation behind that round
        self.save()
        if record is not None and self.watch.saw(record):
            self._keep_best()

    def _spent(self) -> str | None:
        """What of its budget the run has used up, and so is over; None where it goes on."""
        why = used_up(self.config.budget, self.built.federation.server, self._seconds())
        return None if why is None else self._says(why)

    def _says(self, why: str) -> str:
        return f"ended at step {self.step} of {self.config.steps}: {why}"

    def _keep_best(self) -> None:
        """Keeps the model as it is now, behind the checkpoint of this round; what clients hold is none of it."""
        if not self.config.keep_best:
            return
        tensors, values = state_of_server(self.built.federation.server)
        checkpoint.save(self.out / BEST, self.round, tensors, values | {"clients": {}} | self._standing())

    def _tell(self, record: Record) -> None:
        if self.told.on_round is None:
            return
        try:
            self.told.on_round(RunState(self.config, self.built.task.metric, record))
        except BaseException:  # whoever is told may end the run, which goes on from here
            self._keep()
            raise

    def _keep(self) -> None:
        if self.saved == self.round:
            return
        try:
            self.save()
        except CohortLost as error:  # the run ends here, and goes on from the checkpoint before
            log.info("%s; the last checkpoint is that of round %d", error, self.saved)

    def _record(self, validation_loss: float | None, metric: float | None, rows: int | None = None) -> Record:
        server, meters = self.built.federation.server, self.built.federation.server.meters
        return Record(
            round=self.round,
            step=self.step,
            train_loss=sum(self.losses) / len(self.losses) if self.losses else math.nan,
            validation_loss=validation_loss,
            metric=metric,
            up_bytes=server.ledger.total("up"),
            down_bytes=server.ledger.total("down"),
            client_seconds=meters.client.seconds,
            server_seconds=meters.server.seconds,
            wire_seconds=meters.wire.seconds,
            wall_seconds=self._seconds(),
            forward_passes=meters.forward_passes,
            thresholds=server.thresholds(),
            simulated_seconds=self._simulated(),
            rows=rows,
            activations_epsilon=None if (spent := server.private_activations()) is None else spent.epsilon,
        )

    def _evaluated(self, rows: int | None = None) -> Record:
        """The record of an evaluation, on all validation rows or on so many, which is written."""
        on_rows = self.told.on_rows
        result = self.built.evaluate(rows, None if on_rows is None else partial(on_rows, self.config))
        if not math.isfinite(result.loss):
            raise Diverged(
                f"step {self.step}: the validation loss is {result.loss}; lower the learning rates (top.lr, bottom.lr)"
            )
        record = self._record(result.loss, result.metric, rows)
        for sink in self._open_sinks():
            sink.write(record)
        if self.told.on_evaluation is not None:
            self.told.on_evaluation(RunState(self.config, self.built.task.metric, record))
        self.losses = []
        return record

    def _open_sinks(self) -> list[Sink]:
        if not self.sinks:
            tree = configuration.to_tree(self.config)
            self.sinks = sinks_of(self.config.sinks, self.out, tree, self.step or None)
        return self.sinks

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def _simulated(self) -> float | None:
        return None if self.clock is None else self.clock.seconds

    def _go_back(self, error: CohortLost) -> None:
        """To the last checkpoint, unless that has led nowhere again and again."""
        self.steps_back += 1
        if self.steps_back > _STEPS_BACK:
            raise UserError(f"went back to the checkpoint of round {self.round} {_STEPS_BACK} times, still: {error}")
        log.info("%s; going back to the last checkpoint", error)
        found = standing.load(self.config, self.out)
        if found is None:
            raise UserError(f"{self.out / CHECKPOINT} is gone, and with it what the run would go on from") from None
        self._close_sinks()  # the records after the checkpoint are taken away under them
        self.load(*found)

    def _close_sinks(self) -> None:
        for sink in self.sinks:
            sink.close()
        self.sinks = []
