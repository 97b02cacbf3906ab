"""Whole runs of the reference's server with clients of PyTorch, of the native device and of a page (web/, by Node)."""

import copy
import hashlib
import json
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixed import World, adapted, package_folder, run_of, shared_rows, world
from test_whole_run import METHODS

from halfback.engine.remote.frames import Frame
from halfback.runs.shares import write_shares
from halfback.testing import small
from halfback.testing.web import built
from halfback_device.data import Rows
from halfback_device.package import Package

pytestmark = pytest.mark.xdist_group("device package")  # it takes a while to be made: once is enough

_LENGTHS = struct.Struct("<II")


class Page:
    """A page's device in a process of its own, which replies to frames."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to, self._from = process.stdin, process.stdout

    def reply(self, asked: Frame) -> Frame:
        header = asked.header.encode()
        self._to.write(_LENGTHS.pack(len(header), len(asked.body)) + header + asked.body)
        self._to.flush()
        lengths = _LENGTHS.unpack(self._from.read(_LENGTHS.size))
        told, body = (self._from.read(length) for length in lengths)
        return Frame(told.decode(), body)

    def theta(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.reply(Frame("theta")).header)
        return found


@contextmanager
def page(package: Path, rows: dict[str, str]) -> Iterator[Page]:
    command = ["node", str(built("node_device")), str(package), json.dumps(rows)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Page(process)
        process.kill()


def _shares(config: Any, folder: Path) -> list[dict[str, str]]:
    """Each client's rows in a file of its own, as a page is told of them."""
    owns = [folder / f"rows-{number}" for number in range(config.clients)]
    for own in owns:
        own.mkdir(parents=True)
    told = [dict(zip(words[::2], words[1::2], strict=True)) for words in write_shares(small.built(config), owns)]
    kind = "arrays" if told[0]["--data"].endswith(".npz") else "table"
    return [
        {"kind": kind, "path": words.pop("--data")} | {key[2:]: value for key, value in words.items()} for words in told
    ]


def _with(page: Page, config: Any, rows: Rows, folder: Path, package: Package) -> World:
    """A run whose client 0 is the page, client 1 the native device, and client 2 PyTorch's worker."""
    run = world(config, ["torch", "device", "torch"], rows, folder, lambda client: package)
    del run.workers[0]
    run.carrier.replies[0] = page.reply
    return run


def _assert_one_theta(run: World, page: Page, *, takes_turns: bool = False) -> dict[str, np.ndarray]:
    """All who have taken as many steps have the server's bits; θ of the server."""
    (position, agreed), *others = run.thetas()
    there = [theta for at, theta in others if at == position]
    assert all(np.array_equal(theta[name], agreed[name]) for theta in there for name in agreed)
    told = page.theta()
    if takes_turns and told["position"] != position:
        return agreed  # who spoke first takes the others' steps when it comes again
    assert told["position"] == position
    assert told["digests"] == {n: hashlib.sha256(values.tobytes()).hexdigest() for n, values in agreed.items()}
    return agreed


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_theta_of_all_parties_has_the_same_bits(
    method: str, base: Path, tiny_bert: Path, sentences: Path, tmp_path: Path
) -> None:
    name, changes = METHODS[method]
    config = run_of(name, tiny_bert, sentences, **changes)
    package = adapted(base, config, tmp_path / "package")
    unmixed = world(config, ["torch"] * 3, shared_rows(sentences), tmp_path / "torch", lambda client: package)
    unmixed.run(5)
    (_, wanted), *_ = unmixed.thetas()
    rows = _shares(config, tmp_path)
    with page(tmp_path / "package", rows[0]) as mine:
        run = _with(mine, config, shared_rows(sentences), tmp_path / "mixed", package)
        run.run(5)
        found = _assert_one_theta(run, mine, takes_turns=method == "hosl")
    # Of how far θ has come, what rounding in another order may change of it: slopes divide it by μ.
    begin = package.theta()
    moved = max(np.abs(wanted[name] - begin[name]).max() for name in begin)
    within = 0.1 if method == "all exact" else 0.02  # where a codec rounds, a value on the edge may go the other way
    assert moved > 0
    assert max(np.abs(wanted[name] - found[name]).max() for name in begin) <= within * moved


@pytest.mark.slow
def test_labels_stay_on_the_page_in_the_u_shape(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    config = run_of("ho_sfl", tiny_bert, sentences, model__head=0, model__cut=1, codecs__gradient_up=["cast"])
    package = Package.open(package_folder(config, tmp_path / "package"))
    rows = _shares(config, tmp_path)
    with page(tmp_path / "package", rows[0]) as mine:
        run = _with(mine, config, shared_rows(sentences), tmp_path / "mixed", package)
        run.run(4)
        _assert_one_theta(run, mine)


@pytest.mark.slow
def test_a_tab_that_is_opened_again_has_the_bits_of_one_that_stayed(
    base: Path, tiny_bert: Path, sentences: Path, tmp_path: Path
) -> None:
    """With moments, and with a cache that would show if it came back wrong: what was sent is then another message."""
    changes = {"bottom__optimizer": "adamw", "codecs__activations_up": [{"name": "temporal"}, "int8"], "batch_size": 16}
    config = run_of("ho_sfl", tiny_bert, sentences, **changes)
    package = adapted(base, config, tmp_path / "package")
    rows, ends, sent = _shares(config, tmp_path), [], []
    for broken in (False, True):
        with page(tmp_path / "package", rows[0]) as mine:
            run = _with(mine, config, shared_rows(sentences), tmp_path / f"broken-{broken}", package)
            run.run(4)
            saved = copy.deepcopy(run.server.state())
            if broken:
                run.run(1, first=4)
                mine.reply(Frame("reopen"))
                mine.reply(next(question for number, question in run.carrier.asked if number == 0))  # `prepare`, again
            run.server.load_state(*saved)
            asked = len(run.carrier.asked)
            run.run(3, first=4)
            ends.append(_assert_one_theta(run, mine))
            sent.append([question.body for _, question in run.carrier.asked[asked:]])
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert [body for body in sent[0] if body] == [body for body in sent[1] if body]
