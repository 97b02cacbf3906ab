"""Where a job runs: in FLARE's simulator, in a federation of processes on this machine, or in a provisioned one."""

import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Protocol, final

from nvflare.fuel.flare_api.api_spec import AuthenticationError, AuthorizationError, JobNotRunning
from nvflare.fuel.flare_api.flare_api import new_secure_session
from pydantic import BaseModel, ConfigDict, ValidationError

from halfback import json_reading
from halfback.deploy.flare import PROGRESS
from halfback.deploy.folder import ENDED, EVENTS
from halfback.deploy.job import CLASSES, allow
from halfback.deploy.keeper import KITS, Beside, kept, tell
from halfback.deploy.serving import RUN, lines_from
from halfback.deploy.site import FILE, TRIAL, write_site
from halfback.errors import UserError, shown
from halfback.telemetry.records import RECORDS

POLL = 2.0  # seconds between two looks at a job
_LOGIN = 20.0  # seconds for one try to log in
_AWAY = 30.0  # seconds that a site, or a job, has to come back by itself
_ENDED = "FINISHED"  # how FLARE's word for a job that ended begins
_POC_USER = "admin@nvidia.com"

log = logging.getLogger(__name__)

Progress = Callable[[Mapping[str, Any]], None]
"""Takes what `heard` lets through."""


class _Reply(BaseModel):
    """What `Serving.reply` says, as far as it is read here."""

    model_config = ConfigDict(strict=True)

    record: str = ""
    records: list[str] = []
    events: list[dict[str, Any]] = []
    away: list[str] = []
    known: list[str] = []
    sites: list[str] | None = None
    free: int = 0


def heard(told: Any) -> dict[str, Any]:
    """What a server tells of a run, which may be anything.

    Raises:
        UserError: it is nothing that one of ours would tell.
    """
    try:
        return _Reply.model_validate(told).model_dump(exclude_unset=True, exclude_none=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UserError(f"the server tells of the run: {path}={shown(first['input'])}: {first['msg']}") from None


class Environment(Protocol):
    """Takes a job and follows it to its end."""

    def run(self, job: Path, progress: Progress, fetched: Path) -> Path | None:
        """Runs a job; the run's folder as it was left, below `fetched`, or None where the job left none."""
        ...


@final
class _Told:
    """How many events and records of a run were shown."""

    def __init__(self) -> None:
        self._events = self._records = 0

    def asked(self) -> dict[str, Any]:
        return {"events": self._events, "records": self._records}

    def add(self, told: Mapping[str, Any]) -> None:
        self._events += len(told.get("events", []))
        self._records += len(told.get("records", []))

    def news(self, folder: Path) -> dict[str, Any]:
        """What a run's folder, which may come from a server, has beside what was shown."""
        events, records = lines_from(folder / EVENTS, self._events), lines_from(folder / RECORDS, self._records)
        try:
            told = heard({"events": [json_reading.parse(line) for line in events], "records": records})
        except ValueError as error:
            raise UserError(f"{folder / EVENTS} must have one line of JSON for each event: {error}") from None
        self.add(told)
        return told


@final
class Simulator:
    """All sites as processes under FLARE's simulator, on this machine and without certificates."""

    def __init__(self, clients: int, workspace: Path) -> None:
        self._clients = clients
        self._workspace = workspace

    def run(self, job: Path, progress: Progress, fetched: Path) -> Path | None:
        workspace, output = self._workspace, self._workspace.with_name(f"{self._workspace.name}.log")
        (workspace / "local").mkdir(parents=True, exist_ok=True)
        policy = {"format_version": 2, "class_list_enforcement_mode": "enforce", "class_allow_list": CLASSES}
        (workspace / "local" / "resources.json").write_text(json.dumps(policy))
        write_site(workspace / "local", TRIAL)  # which FLARE copies to every site
        command = [sys.executable, "-m", "nvflare.cli", "simulator", str(job), "-w", str(workspace)]
        command += ["-n", str(self._clients), "-t", str(self._clients)]
        told = _Told()
        with output.open("w") as log_file, _running(command, log_file) as process:
            while process.poll() is None:
                time.sleep(POLL / 4)
                for path in workspace.glob(f"**/runs/*/{EVENTS}"):
                    progress(told.news(path.parent))
        found = sorted(workspace.glob(f"**/{RUN}/{ENDED}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"the simulator left no run: see {output}")
        return found[-1].parent


@contextmanager
def _running(command: list[str], output: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@final
class Federation:
    """A started federation, as the admin of a startup kit sees it."""

    def __init__(self, kit: Path, user: str, *, sites: int, needed: int, patience: float) -> None:
        """`sites`: those that it waits for; `needed`: without which it can't go on; `patience`: seconds for them."""
        _check_admin(kit, user)
        self._kit = kit
        self._user = user
        self._sites = sites
        self._needed = needed
        self._patience = patience
        self._session: Any = None
        self._refused = False
        self._shown = _Told()  # also by earlier jobs

    def run(self, job: Path, progress: Progress, fetched: Path) -> Path | None:
        self._wait_for_sites()
        number = self._asked(lambda session: session.submit_job(str(job)))
        log.info("job %s", number)
        status = self._follow(number, progress)
        fetched.mkdir(parents=True, exist_ok=True)
        found: list[Path] = []
        if status.startswith(_ENDED):
            result = self._asked(lambda session: session.download_job_result(number, str(fetched)))
            found = sorted(Path(str(result)).glob(f"**/{RUN}/{ENDED}"))
        if not found:
            log.info("job %s ended as %s", number, status)
            return None
        progress(self._shown.news(found[-1].parent))
        return found[-1].parent

    def _follow(self, number: str, progress: Progress) -> str:
        """Shows how a job goes; its status at the end."""
        back_since, gone_since = 0.0, 0.0
        while True:
            time.sleep(POLL)
            status = str(self._asked(lambda session: session.get_job_meta(number)).get("status", ""))
            if status.startswith(_ENDED):
                return status
            told = self._told(number, self._shown.asked())
            if told:
                self._shown.add(told)
                progress(told)
                back_since = self._call_back(number, told, back_since)
            # A server that was killed has forgotten the job, and calls it running for ever.
            lost = status == "RUNNING" and told is None
            gone_since = (gone_since or time.monotonic()) if lost else 0.0
            if lost and time.monotonic() - gone_since > _AWAY:
                return "lost by the server"

    def _call_back(self, number: str, told: Mapping[str, Any], since: float) -> float:
        """A site that was away or is new can't enter a running job: the job ends, another one has it."""
        connected = {client.name for client in self._asked(lambda session: session.get_connected_client_list())}
        outside = connected - set(told.get("sites", connected))
        welcome = outside if told.get("free", 0) else outside & set(told.get("known", []))
        back = sorted(welcome | (connected & set(told.get("away", []))))
        if not back:
            return 0.0
        if not since:
            return time.monotonic()
        if time.monotonic() - since > _AWAY:
            log.info("%s can take part: the job starts anew from its checkpoint", ", ".join(back))
            self._told(number, {"stop": True})
            return time.monotonic()
        return since

    def _told(self, number: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """What the job replies; None where it isn't running."""
        try:
            found = self._asked(lambda session: session.do_app_command(number, PROGRESS, asked), once=True)
        except JobNotRunning:
            return None
        except UserError as error:
            if not self._refused:
                log.warning("how the run goes can't be shown: %s", error)
            self._refused = True
            return {}
        except Exception:  # it is starting, or too busy to reply: the next look tells
            return {}
        return heard(found) if isinstance(found, dict) else {}

    def _wait_for_sites(self) -> None:
        """Until all sites are connected that the run waits for; those that it needs suffice after a while."""
        begun = time.monotonic()
        while True:
            names = [client.name for client in self._asked(lambda session: session.get_connected_client_list())]
            waited = time.monotonic() - begun
            if len(names) >= self._sites or (len(names) >= self._needed and waited > _AWAY):
                return
            if waited > self._patience:
                raise UserError(
                    f"{len(names)} sites are connected ({', '.join(sorted(names)) or 'none'}), the run needs "
                    f"{self._needed}; start them, or see deployment.min_cohort"
                )
            time.sleep(POLL)

    def _asked(self, question: Callable[[Any], Any], *, once: bool = False) -> Any:
        """The reply of FLARE's server, which may be starting anew."""
        until = time.monotonic() + self._patience
        while True:
            is_new = self._session is None
            try:
                if self._session is None:
                    with redirect_stdout(io.StringIO()):  # it says that it connects
                        self._session = new_secure_session(self._user, str(self._kit), timeout=_LOGIN)
                return question(self._session)
            except JobNotRunning:
                raise
            except AuthorizationError as error:
                raise UserError(f"FLARE's server refuses {self._user}: {error}") from None
            except Exception as error:
                self.close()
                if isinstance(error, AuthenticationError) and is_new:
                    raise UserError(f"FLARE's server refuses {self._user}: {error}") from None
                if once:
                    raise
                if time.monotonic() > until:
                    raise UserError(f"FLARE's server can't be reached with {self._kit}: {error}") from None
                time.sleep(POLL)

    def close(self) -> None:
        """Logs out."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(Exception):  # of a server that is gone
                session.close()


def _check_admin(kit: Path, user: str) -> None:
    """FLARE tries for minutes to log in with another's kit, or with another's name, and never says what is wrong."""
    if not (kit / "startup").is_dir():
        raise UserError(f"--kit {kit} is no startup kit of an admin: there is no folder startup in it")
    try:
        admin = json.loads((kit / "startup" / "fed_admin.json").read_text(encoding="utf-8")).get("admin", {})
    except FileNotFoundError:
        raise UserError(
            f"--kit {kit} is no startup kit of an admin: there is no startup/fed_admin.json in it"
        ) from None
    except (OSError, ValueError, AttributeError):
        raise UserError(f"--kit {kit} has a startup/fed_admin.json that can't be read") from None
    owner = admin.get("username") if isinstance(admin, dict) else None
    if owner and owner != user:
        raise UserError(f"--user {user}: the startup kit {kit} is that of {owner}")


@contextmanager
def poc(
    clients: int, workspace: Path, files: Mapping[str, str] | None = None, beside: Sequence[Beside] = ()
) -> Iterator[tuple[Path, str]]:
    """A federation of processes on this machine, with certificates; yields the admin's startup kit and name.

    Args:
        clients: how many sites of clients it has.
        workspace: folder of it; one that was made before is used again.
        files: what the file of a site says, by the site's name; without it a site is for trying things out, and has
            the file of before if there is one.
        beside: what is started once it is there, and ended with it.

    Raises:
        UserError: the folder holds a federation of another size, or it can't be started.
    """
    kits = workspace / KITS
    is_new = not kits.is_dir()
    if is_new:
        tell(workspace, "prepare", "-n", str(clients))
    elif (found := len(list(kits.glob("site-*")))) != clients:
        raise UserError(f"{workspace} holds a federation of {found} sites, and {clients} are due; name another folder")
    for kit in [kits / "server", *kits.glob("site-*")]:
        if is_new:
            allow(kit)
        if files and kit.name in files:
            (kit / "local" / FILE).write_text(files[kit.name], encoding="utf-8")
        write_site(kit / "local", TRIAL)
    with kept(workspace, _listen_here(kits / "server"), beside):
        yield kits / _POC_USER, _POC_USER


def _listen_here(server: Path) -> int:
    """Has a server of `poc` listen on loopback alone: FLARE binds every address, unless its own name is loopback's.

    Returns its port.
    """
    path = server / "startup" / "fed_server.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    port = 0
    for entry in tree["servers"]:
        service = entry["service"]
        port = int(service["target"].rpartition(":")[2])
        service["target"] = f"localhost:{port}"
    path.write_text(json.dumps(tree, indent=2), encoding="utf-8")
    return port
