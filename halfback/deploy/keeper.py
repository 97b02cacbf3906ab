"""The process that has a federation of `poc`, and devices beside it: it starts them, and ends them all.

Whoever wants them starts this process and holds its standard input open. What ends that process closes the input, also
where it is killed and could end nothing itself; then all that was started is ended.
"""

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from halfback.errors import UserError

KITS = Path("example_project", "prod_00")
_STARTED = "started"
_TOLD = 120.0  # seconds for a word to `nvflare poc`, which may hang where it logs in to a busy server
_STARTS, _LOOK = 300.0, 0.5  # seconds that its server has to start, and between two looks
_LEAVES = 10.0  # seconds that all devices have to end by themselves
NOT_FROM_HERE = "-P"  # of Python: no module is loaded because it lies in the folder that a process was started in


class Beside(NamedTuple):
    """A process beside the federation.

    Attributes:
        command: of it.
        log: the file that what it says goes to.
        port: of this machine; it is started once somebody listens there.
    """

    command: list[str]
    log: str
    port: int


@contextmanager
def kept(workspace: Path, port: int, beside: Sequence[Beside]) -> Iterator[None]:
    """A federation of `poc`, started, and what is beside it; ended behind the block.

    Args:
        workspace: where it was prepared.
        port: of its server.
        beside: what else is started.

    Raises:
        UserError: it can't be started.
    """
    told = json.dumps([str(workspace), port, beside])
    command = [sys.executable, NOT_FROM_HERE, "-m", "halfback.deploy.keeper", told]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C of the terminal is for whoever wants this, whose end ends it
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if (why := process.stdout.readline().rstrip("\n")) != _STARTED:
                raise UserError(why or "the process that keeps the federation was killed")
            yield
        finally:
            process.stdin.close()
            process.wait()


def tell(workspace: Path, *words: str) -> None:
    """Has `nvflare poc` do something with the federation in `workspace`; UserError in its words where that failed."""
    environment = os.environ | {
        "NVFLARE_POC_WORKSPACE": str(workspace),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    command = [sys.executable, "-m", "nvflare.cli", "poc", *words]
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    try:
        done = subprocess.run(command, env=environment, timeout=_TOLD, **quiet)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired:
        raise UserError(f"nvflare poc {words[0]} took longer than {_TOLD:g} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"nvflare poc {words[0]} failed: {' '.join(last)}")


def _keep(workspace: Path, port: int, beside: list[Beside]) -> None:
    """Until standard input ends."""
    if _listens(port):
        _say(f"somebody listens at port {port} of this machine, where the federation's server is to: another one?")
        return
    running: list[subprocess.Popen[bytes]] = []
    try:
        tell(workspace, "start", "--no-wait")  # whoever submits a run waits for the sites
        until = time.monotonic() + _STARTS
        while not _listens(port) and not _over():
            if time.monotonic() > until:
                raise UserError(f"the server of {workspace} doesn't listen after {_STARTS:g} s; see its log.txt there")
        _say(_STARTED)
        while not _over():
            for one in [one for one in beside if _listens(one.port)]:
                beside.remove(one)
                with Path(one.log).open("ab") as log:
                    running.append(
                        subprocess.Popen(one.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
                    )
    except UserError as error:
        _say(str(error))
    finally:
        for process in running:
            process.terminate()
        until = time.monotonic() + _LEAVES
        for process in running:
            try:
                process.wait(max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
        _stop(workspace)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=_LOOK):
        return True
    return False


def _over() -> bool:
    """Whether standard input has ended, which is waited for a moment."""
    return bool(select.select([sys.stdin], [], [], _LOOK)[0])


def _say(what: str) -> None:
    with suppress(OSError):  # of one that is gone already
        print(what, flush=True)


def _stop(workspace: Path) -> None:
    try:
        tell(workspace, "stop")
    except UserError:  # it asks the server, which may be gone: each site is told by itself
        for script in (workspace / KITS).glob("s*/startup/stop_fl.sh"):
            subprocess.run(["bash", str(script)], input="y", capture_output=True, text=True)


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    _keep(Path(told[0]), told[1], [Beside(*one) for one in told[2]])
