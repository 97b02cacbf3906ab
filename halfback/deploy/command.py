"""`halfback deploy`: submits a run, follows it, begins it again where a job ends before it, and fetches its folder."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from halfback import json_reading
from halfback.config import RunConfig
from halfback.data.encode import metric_of
from halfback.data.tasks import objective_of
from halfback.deploy import trying
from halfback.deploy.environments import Environment, Federation, Progress, Simulator, poc
from halfback.deploy.folder import ENDED, check_name, copy_run
from halfback.deploy.job import deployable, write_job
from halfback.errors import UserError, one_line, shown
from halfback.report.page import write_report
from halfback.runs.folder import REPORT
from halfback.runs.summary import Summary
from halfback.runs.told import OnRound, RunState
from halfback.telemetry.records import Record, read_summary

Kind = Literal["simulator", "poc", "prod"]
JOBS = 20  # one after another, until a run that does not finish is given up

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Destination:
    """The federation that a run goes to.

    kind: in FLARE's simulator, of processes on this machine, or of sites that somebody has set up.
    kit, user: the startup kit and the name of an admin, for `prod`.
    workspace: where `simulator` and `poc` keep their sites, by default beside the fetched run.
    sites: for how many a run waits in `prod`, where those of gateways have several clients; None for one a client.
    devices: in `poc`, how many of the clients are devices of one gateway, which are started too, and how many tabs of
        a browser; None where they are sites.
    """

    kind: Kind
    kit: Path | None = None
    user: str | None = None
    workspace: Path | None = None
    sites: int | None = None
    devices: trying.Kinds | None = None


def deploy(config: RunConfig, name: str, out: Path, to: Destination, *, on_round: OnRound) -> Summary:
    """Runs `config` with clients on other machines, or in other processes; returns the summary.

    name: the run's, on the server's site: the same name goes on with the same run. out: where its folder comes to.

    Raises:
        UserError: the run can't be deployed, stopped for a reason that it names, or does not finish.
    """
    config = deployable(config)
    check_name(name, "--name")
    if to.devices:
        trying.check(config, to.devices)
    if out.exists() and any(out.iterdir()) and not (out / ENDED).exists():
        raise UserError(f"--out {out} exists and holds no fetched run; name a new folder")
    place = (to.workspace or out.with_name(f"{out.name}.flare")).resolve()
    with ExitStack() as stack:
        devices = None
        if to.devices:
            devices = trying.Devices(config, to.devices, place / "devices")
            stack.enter_context(devices.named())
        environment = stack.enter_context(_environment(config, to, place, devices))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        job, follow = write_job(scratch, name, config), _follow(config, on_round, devices)
        for number in range(JOBS):
            left = environment.run(job, follow, scratch / f"fetched-{number}")
            ended = {"how": "lost", "why": "its job ended"} if left is None else _ended(left / ENDED)
            if left is not None and ended["how"] == "finished":
                copy_run(left, out)
                write_report([out], out / REPORT)  # ours: a page that a server made is code for a browser
                return Summary.from_dict(read_summary(out))
            if ended["how"] == "failed":
                raise UserError(f"{name} stopped: {ended['why']}")
            log.info("%s goes on from its last checkpoint: %s", name, ended["why"])
    raise UserError(f"{name} did not finish in {JOBS} jobs; see the logs of the server's site")


@contextmanager
def _environment(
    config: RunConfig, to: Destination, place: Path, devices: trying.Devices | None
) -> Iterator[Environment]:
    """Where a run goes, started where it is on this machine; it is ended behind the block.

    `place`: the folder of its sites; `devices`: those of the one site of a `poc`, where the clients are such.
    """
    if to.kind == "simulator":
        yield Simulator(config.clients, place)
        return
    kit, user, sites = to.kit, to.user, to.sites or config.clients
    with ExitStack() as stack:
        if to.kind == "poc":
            if devices is None:
                kit, user = stack.enter_context(poc(sites, place))
            else:
                sites, place = 1, place / "federation"
                kit, user = stack.enter_context(poc(sites, place, devices.files, devices.processes))
        if kit is None or user is None:
            raise UserError("--env prod needs --kit, an admin's startup kit, and --user, that admin's name")
        patience = config.deployment.patience
        needed = min(config.deployment.min_cohort or sites, sites)
        federation = Federation(kit.resolve(), user, sites=sites, needed=needed, patience=patience)
        stack.callback(federation.close)
        yield federation


def _ended(path: Path) -> dict[str, str]:
    """How a run ended, in the server's words."""
    said = json_reading.read(path)
    if not isinstance(said, dict) or not isinstance(said.get("how"), str) or not isinstance(said.get("why"), str):
        raise UserError(f"{path} must say how and why the run ended, not {shown(said)}")
    return {"how": said["how"], "why": one_line(said["why"][:4000])}


def _follow(config: RunConfig, on_round: OnRound, devices: trying.Devices | None = None) -> Progress:
    metric = metric_of(objective_of(config.task))

    def progress(told: Mapping[str, Any]) -> None:
        if devices is not None:
            devices.tell()
        for event in told.get("events", []):
            log.info("%s", _said(event))
        records = [Record.from_json(str(line)) for line in told.get("records", [])]
        newest = Record.from_json(str(told["record"])) if told.get("record") else None
        if newest is not None and newest.metric is None:  # an evaluation is among the records
            records.append(newest)
        for record in records:
            on_round(RunState(config, metric, record))

    return progress


def _said(event: Mapping[str, Any]) -> str:
    """One line about something that happened."""
    who = f"client {event['client']} ({event.get('site')}) " if "client" in event else "the run "
    about = f": {event['why']}" if "why" in event else f", {event['bytes']} bytes" if "bytes" in event else ""
    return one_line(f"round {event.get('round', 0)}: {who}{event.get('event')}{about}"[:1000])  # it may be anyone's
