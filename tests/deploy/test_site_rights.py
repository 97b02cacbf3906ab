"""What `halfback site` is for: a real site runs our job and refuses others, whatever the server would let pass."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import digits

from halfback.deploy.job import CLASSES, allow, write_job
from halfback.testing import small
from tests.deploy.federation import ADMIN, PATIENCE, SERVER, Federation

pytestmark = pytest.mark.slow
EVIL = "import pathlib\n\n\nclass Evil:\n    def __init__(self, path):\n        pathlib.Path(path).touch()\n"
FOREIGN: dict[str, tuple[str, dict[str, Any], bool, str]] = {
    "brings-code": ("evil.Evil", {"path": "PATH"}, True, "BYOC not permitted"),
    "any-class": ("subprocess.Popen", {"args": ["touch", "PATH"]}, False, "is not in allow_list"),
    "a-class-of-flare's": (
        "nvflare.app_opt.tracking.tb.tb_writer.TBWriter",
        {"tb_folder": "PATH"},
        False,
        "is not in allow_list",
    ),
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server that allows everything, and a site that was told about halfback."""
    made = Federation(tmp_path_factory.mktemp("federation"), ["site-1"])
    local = made.kits / SERVER / "local"
    resources = json.loads((local / "resources.json.default").read_text())
    (local / "resources.json").write_text(json.dumps(resources | {"class_allow_list": ["*"]}))
    allow(made.kits / "site-1")
    for name in (SERVER, "site-1"):
        (made.kits / name / "local" / "halfback.yaml").write_text("")
    try:
        made.start(SERVER)
        made.start("site-1")
        made.wait_for(["site-1"])
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_job_is_refused_by_the_site(federation: Federation, tmp_path: Path, what: str) -> None:
    path, arguments, brings_code, says = FOREIGN[what]
    marker = tmp_path / "it-ran"
    job = write_job(tmp_path, path.rpartition(".")[2], small.images("ho_sfl", clients=1, sampled_clients=1))
    client = job / "app" / "config" / "config_fed_client.json"
    tree = json.loads(client.read_text())
    found = json.loads(json.dumps(arguments).replace("PATH", str(marker)))
    tree["components"].append({"id": "foreign", "path": path, "args": found})
    client.write_text(json.dumps(tree))
    if brings_code:
        (job / "app" / "custom").mkdir()
        (job / "app" / "custom" / "evil.py").write_text(EVIL)
    session = federation.session()
    try:
        number = session.submit_job(str(job))
        ended = session.monitor_job(number, timeout=PATIENCE, poll_interval=1.0)
        status = session.get_job_meta(number)
    finally:
        session.close()
    assert "COMPLETED" not in status["status"], (ended, status)
    assert not marker.exists()
    logs = [federation.log(SERVER), federation.log("site-1")]  # a site that takes no app says so to the server alone
    assert any(says in log.read_text() for log in logs), (number, status["status"])


@pytest.mark.parametrize("command", ["cat", "ls", "grep"])
def test_nobody_reads_the_sites_files(federation: Federation, command: str) -> None:
    session = federation.session()
    words = {"cat": "cat site-1 log.txt", "ls": "ls site-1", "grep": "grep site-1 INFO log.txt"}[command]
    try:
        reply = session.api.do_command(words)
    finally:
        session.close()
    assert "not authorized" in str(reply).lower(), reply


def test_our_job_runs(federation: Federation, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = [word for word in digits(out, "clients=1", "sampled_clients=1") if word != "train"]
    command = [sys.executable, "-m", "halfback", "deploy", *settings, "--env", "prod", "--name", "ours"]
    command += ["--kit", str(federation.kits / ADMIN), "--user", ADMIN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5 * PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len((out / "records.jsonl").read_text().splitlines()) > 0
    assert CLASSES[-1] in (federation.kits / "site-1" / "local" / "resources.json").read_text()
