"""A provisioned FLARE federation for the benchmarks: mutual TLS, its own ports, each process a child of ours."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

ADMIN = "admin@nvidia.com"
_IMPL = "nvflare.lighter.impl"


def provision(folder: Path, server: str, sites: Sequence[str], port: int, scheme: str) -> Path:
    """The startup kits of a project: certificates, and configurations that name `server`. Returns their folder.

    `scheme`: how FLARE's processes speak, `http` (its default, web sockets), `grpc` or `tcp`; each under mutual TLS.
    """
    folder.mkdir(parents=True, exist_ok=True)
    member = {"org": "nvidia"}
    project = {
        "api_version": 3,
        "name": "bench",
        "description": "benchmark",
        "participants": [
            member | {"name": server, "type": "server", "fed_learn_port": port, "admin_port": port + 1},
            *(member | {"name": name, "type": "client"} for name in sites),
            member | {"name": ADMIN, "type": "admin", "role": "project_admin"},
        ],
        "builders": [
            {"path": f"{_IMPL}.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
            {"path": f"{_IMPL}.static_file.StaticFileBuilder", "args": {"config_folder": "config", "scheme": scheme}},
            {"path": f"{_IMPL}.cert.CertBuilder"},
            {"path": f"{_IMPL}.signature.SignatureBuilder"},
        ],
    }
    (folder / "project.yml").write_text(yaml.safe_dump(project, sort_keys=False))
    command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", "project.yml", "-w", "kits", "--force"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    kits = folder / "kits" / "bench" / "prod_00"
    # By default every server of a machine takes its jobs from one folder, so each would run those of the others.
    stores = kits / server / "local" / "resources.json.default"
    stores.write_text(stores.read_text().replace("/tmp/nvflare/", f"{folder}/"))
    return kits


@contextmanager
def running(
    kits: Path, server: str, sites: Sequence[str], *, inside: Sequence[Sequence[str]] = ((), ())
) -> Iterator[None]:
    """Server and sites while they run; `inside`: what stands before the command of a server, and of a site."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, module: str, role: str, before: Sequence[str], *words: str) -> None:
        kit = kits / name
        (kit / "transfer").mkdir(exist_ok=True)
        command = [*before, sys.executable, "-u", "-m", f"nvflare.private.fed.app.{module}", "-m", str(kit)]
        command += ["-s", f"fed_{role}.json", "--set", "secure_train=true", "org=nvidia", "config_folder=config"]
        command += words
        with (kit / "output.log").open("w") as output:
            processes.append(
                subprocess.Popen(
                    command, cwd=kit, env=environment, stdout=output, stderr=output, start_new_session=True
                )
            )

    try:
        start(server, "server.server_train", "server", inside[0])
        for name in sites:
            start(name, "client.client_train", "client", inside[1], f"uid={name}")
        yield
    finally:
        for process in reversed(processes):  # with the job's processes, which are of its session
            _end(process)


def permit(kit: Path, classes: Sequence[str]) -> None:
    """Lets a site run these components too."""
    resources = kit / "local" / "resources.json"
    default = kit / "local" / "resources.json.default"
    tree = json.loads((resources if resources.exists() else default).read_text())
    tree["class_allow_list"] += classes
    resources.write_text(json.dumps(tree))


def submit(job: Path, kit: Path, clients: int, found: Path) -> None:
    """Submits a job once its sites are connected, and waits for the file that it leaves."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    until = time.monotonic() + 120
    session = None
    while session is None:
        try:
            session = new_secure_session(ADMIN, str(kit), timeout=10)
        except Exception:  # not up yet
            if time.monotonic() > until:
                raise
            time.sleep(1)
    try:
        while len(session.get_connected_client_list()) < clients:
            time.sleep(1)
        number = session.submit_job(str(job))
        while not found.exists():
            time.sleep(2)
            status = str(session.get_job_meta(number).get("status", ""))
            if status.startswith("FINISHED") and not found.exists():
                sys.exit(f"the job ended as {status} and left nothing")
    finally:
        session.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def resident(place: str, kinds: Mapping[str, str]) -> dict[str, tuple[float, int]]:
    """MB and threads of the processes of a folder, the most of each kind.

    `kinds`: each one's name, and a word of its command line.
    """
    found: dict[str, tuple[float, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words, status = (entry / "cmdline").read_text(), (entry / "status").read_text()
        except OSError:
            continue
        for kind, word in kinds.items():
            if word in words and place in words and "VmRSS" in status:
                size, threads = (int(status.split(name)[1].split()[0]) for name in ("VmRSS:", "Threads:"))
                found[kind] = max(found.get(kind, (0.0, 0)), (size / 1024, threads))
    return found
