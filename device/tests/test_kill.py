"""A worker that is killed in the middle of a round goes on from its disk with the bits of an unbroken run."""

import copy
from pathlib import Path
from typing import Any

import pytest
from mixed import Processes, adapted, run_of, served, shared_rows, world

from halfback.engine.remote.server import RemoteServer
from halfback.errors import CohortLost
from halfback.parties.holdings import Round
from halfback.testing import small

pytestmark = pytest.mark.xdist_group("device package")  # it takes a while to be made: once is enough

STEPS = 2
# What a worker must keep beside θ: moments, what a lossy codec still owes, and samples that both ends remember.
SETTINGS: dict[str, Any] = {
    "clients": 2,
    "sampled_clients": 2,
    "batch_size": 16,
    "bottom__optimizer": "adamw",
    "algorithm__directions": 0,
    "algorithm__exact_blocks": "all",
    "codecs__activations_up": [{"name": "temporal"}, "int8"],
    "codecs__gradient_down": [{"name": "temporal", "where": "disk"}, "int8"],
    "codecs__slopes_up": ["sign"],
    "codecs__slopes_down": ["int8"],
}


def test_a_killed_worker_goes_on_with_the_same_bits(
    base: Path, tiny_bert: Path, sentences: Path, tmp_path: Path
) -> None:
    config = run_of("ho_sfl", tiny_bert, sentences, **SETTINGS)
    package, rows = adapted(base, config, tmp_path / "package"), shared_rows(sentences)
    unbroken = world(config, ["device", "device"], rows, tmp_path / "unbroken", lambda client: package)
    unbroken.run(7, steps=STEPS)
    told = {"package": str(tmp_path / "package"), "folder": str(tmp_path / "broken"), "rows": vars(rows)}
    carrier = Processes(dict.fromkeys(range(2), told))
    federation, server = served(config, carrier)
    _rounds(server, 0, 4)
    saved = copy.deepcopy(server.state())
    # Said by both: the greeting, Join, and two batches with two messages each. The second of the last is on its way.
    carrier.kill = (1, carrier.asked + 4)
    with pytest.raises(CohortLost, match="its worker died"):
        _rounds(server, 4, 1)
    server.load_state(*saved)
    _rounds(server, 4, 3)
    carrier.close()
    small.assert_equal_states(federation, unbroken.federation, but=("peaks",))


def _rounds(server: RemoteServer, first: int, count: int) -> None:
    for number in range(first, first + count):
        server.run_round(Round(number, STEPS, number * STEPS), measure_memory=False)
