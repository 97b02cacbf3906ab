"""A server and the relays of its sites in one process, the workers in processes of their own: all but FLARE."""

import json
import sys
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from halfback.deploy.relay import Relay, WorkerLost
from halfback.deploy.serving import ENDED, RUN, Surroundings, serve
from halfback.deploy.site import SiteConfig
from halfback.engine import checkpoint
from halfback.engine.remote.frames import Frame, Longest
from halfback.engine.remote.presence import Came
from halfback.errors import PeerError


class Relays:
    """Carries questions to the workers of this machine; `before` sees them first."""

    def __init__(
        self,
        folder: Path,
        clients: list[int],
        sites: Mapping[int, SiteConfig] | None = None,
        before: Callable[[Mapping[int, Frame]], None] = lambda questions: None,
    ) -> None:
        self.by_client = {n: Relay((sites or {}).get(n, SiteConfig()), folder / f"site-{n}") for n in clients}
        self._before = before

    def reachable(self) -> set[int]:
        return set(self.by_client)

    def counts(self) -> dict[str, dict[str, float]]:
        return {}

    def is_there(self, client: int) -> bool:
        return client in self.by_client

    def silent(self) -> set[str]:
        return set()

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Came], None, None]:
        self._before(questions)
        with ThreadPoolExecutor(max(len(questions), 1)) as threads:
            calls = {n: threads.submit(self._one, n, question, seconds[n]) for n, question in questions.items()}
            for n, call in calls.items():
                yield n, call.result()

    def _one(self, number: int, question: Frame, seconds: float) -> Frame | str:
        try:
            return self.by_client[number].exchange(question, seconds)
        except (WorkerLost, PeerError) as error:
            return str(error)

    def close(self) -> None:
        for relay in self.by_client.values():
            relay.close()


def serve_here(
    folder: Path, tree: dict[str, Any], relays: Relays, server: SiteConfig | None = None, name: object = "run"
) -> dict[str, Any]:
    """Runs or continues a run; how it ended. Its folder is then `folder`/job/run."""
    serve(
        name,
        tree,
        Surroundings(
            site=lambda: server or SiteConfig(),
            folder=lambda _: folder / "server",
            sites=lambda: {f"site-{number}": 1 for number in relays.by_client},
            carrier=lambda seats: relays,
            job=folder / "job",
            listen=lambda reply: None,
        ),
    )
    ended = json.loads((folder / "job" / RUN / ENDED).read_text())
    assert isinstance(ended, dict)
    return ended


def assert_same(one: Path, other: Path, *, rounds: int) -> None:
    """Two runs have ended after so many rounds with the same bits."""
    mine, theirs = (checkpoint.load(folder / "checkpoint") for folder in (one, other))
    assert mine is not None
    assert theirs is not None
    assert mine[0] == theirs[0] == rounds
    names = [name for name in mine[1] if name.startswith(("bottom", "top", "history"))]
    assert [name for name in names if not torch.equal(mine[1][name], theirs[1][name])] == []


if __name__ == "__main__":
    place = Path(sys.argv[1])
    settings = json.loads((place / "config.json").read_text())
    workers = Relays(place, list(range(settings["clients"])))
    (place / "pids.json").write_text(json.dumps({n: relay.pid for n, relay in workers.by_client.items()}))
    print(json.dumps(serve_here(place, settings, workers)), flush=True)
    workers.close()
