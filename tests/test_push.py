"""`--push` through the hub's own client, to a stand-in on this machine that speaks the calls which that makes."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from command import digits, halfback, refusal

TOKEN = "hf_standin"


class Hub(BaseHTTPRequestHandler):
    """Makes repositories, says that every file comes in the commit itself, and keeps what the commit has."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._say({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            server.made.append(json.loads(body))
            return self._say({"url": f"http://127.0.0.1:{server.server_port}/me/films", "name": "me/films"})
        if self.path == "/api/validate-yaml":
            return self._say({"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = [file | {"uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self._say({"files": files})
        if self.path.endswith("/commit/main"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            commit = {
                "commitUrl": f"http://127.0.0.1:{server.server_port}/me/films/commit/1",
                "commitOid": "1",
                "success": True,
            }
            return self._say(commit | {"pullRequestUrl": None})
        return self._say({"error": f"unknown {self.path}"}, 404)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/me/films"):
            return self._say({"_id": "1", "id": "me/films", "sha": "1", "siblings": []})
        return self._say({"error": f"unknown {self.path}"}, 404)

    def _say(self, answer: Any, status: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.made, server.files = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    assert halfback(*digits(out, algorithm="decomfl")).status == 0
    return out


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int, str | None], None]:
    """Has the client, as its environment would, speak to a port of this machine with a token, or without one."""

    def settle(port: int, token: str | None) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.setenv("HF_TOKEN", token or "")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    return settle


def test_an_export_arrives_as_it_is(run: Path, hub: Any, at: Callable[[int, str | None], None], tmp_path: Path) -> None:
    at(hub.server_port, TOKEN)
    out = tmp_path / "home"
    said = halfback("export", run, "--history", "--out", out, "--push", "me/films", "--private")
    assert said.status == 0, said.err
    assert said.out.splitlines()[-1] == f"http://127.0.0.1:{hub.server_port}/me/films"
    made = [(one["name"], one["organization"], one["visibility"]) for one in hub.made]
    assert made == [("films", "me", "private")]
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert hub.files.keys() == {"README.md", "history.safetensors"}


@pytest.mark.parametrize("wrong", ["no token", "another token", "no network"])
def test_what_goes_wrong_is_one_line_and_the_export_stays(
    wrong: str, run: Path, hub: Any, at: Callable[[int, str | None], None], tmp_path: Path
) -> None:
    port, token, why = {
        "no token": (hub.server_port, None, "no token of the hub is here; `hf auth login`, or set HF_TOKEN"),
        "another token": (hub.server_port, "hf_other", "the hub refuses the token (401)"),
        "no network": (1, TOKEN, "the upload failed ("),
    }[wrong]
    at(port, token)
    out = tmp_path / "home"
    line = refusal(halfback("export", run, "--history", "--out", out, "--push", "me/films"))
    assert line.startswith(f"--push me/films: {why}")
    assert line.endswith(f"; {out} is kept")
    assert (out / "README.md").is_file()
    assert hub.files == {}


def test_a_name_that_is_none_is_said_before_the_export(run: Path, tmp_path: Path) -> None:
    said = halfback("export", run, "--history", "--out", tmp_path / "home", "--push", "a/b/c")
    assert said.status == 2
    assert said.err.startswith("halfback: --push a/b/c: ")
    assert not (tmp_path / "home").exists()
