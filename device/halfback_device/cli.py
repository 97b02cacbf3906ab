"""The command `halfback-device`: checks a package, joins a gateway, works for a site, and runs inference alone."""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halfback_device.alone import alone
from halfback_device.data import Rows
from halfback_device.errors import DeviceError, running_graphs
from halfback_device.package import Package
from halfback_device.plan import plan_of
from halfback_device.profile import profile, written
from halfback_device.session import peak_bytes, rehearsed
from halfback_device.worker import serve


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; an error is one line on standard error, and exit status 2."""
    chosen = _parser().parse_args(arguments)
    try:
        match chosen.command:
            case "check":
                _tell(check(chosen.package))
            case "worker":
                serve(chosen.arguments)
            case "profile":
                assumed = {name: getattr(chosen, name) for name in _ASSUMED} | {"name": chosen.name}
                told = profile(
                    chosen.package, _rows(chosen), client=chosen.client, seconds=chosen.seconds, assumed=assumed
                )
                try:
                    chosen.out.write_text(written(told))
                except OSError as error:
                    raise DeviceError(f"{chosen.out}: {error.strerror}") from None
            case "join":
                _join(chosen)
            case _:
                _tell(infer(chosen.package, _rows(chosen), client=chosen.client, batches=chosen.batches))
    except DeviceError as error:
        print(f"halfback-device: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("halfback-device: stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _join(chosen: argparse.Namespace) -> None:
    from halfback_device.join import Terms, join, read_token  # a worker starts without a WebSocket

    join(
        Terms(
            chosen.url,
            read_token(chosen.token_file) if chosen.token is None else chosen.token,
            _rows(chosen),
            folder=chosen.folder,
            authority=chosen.ca,
            only_when=chosen.only_when,
            keep_labels=chosen.keep_labels,
        )
    )


def _tell(found: Mapping[str, Any]) -> None:
    """Prints what a command found; ends quietly where nobody reads on, as a process that the system's signal ends."""
    try:
        print(json.dumps(found), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python puts what is left at its end
        if isinstance(error, BrokenPipeError):
            sys.exit(128 + signal.SIGPIPE)
        raise DeviceError(f"standard output can't be written: {error.strerror}") from None


class _Version(argparse.Action):
    """Looks the version up when it is asked for: a worker starts without that."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(version("halfback-device"))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="halfback-device", description="A client of halfback with an inference runtime and nothing else."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("check", help="verify a package, and do with it what a run begins with")
    one.add_argument("package", type=Path, help="folder that `halfback package` made")
    one = commands.add_parser("worker", help="reply to the questions on a socket; a site's process starts this")
    one.add_argument("arguments", help="JSON: descriptor, package, folder, rows, keep_labels")
    one = commands.add_parser("join", help="connect to a site's gateway, and work for it until told to stop")
    one.add_argument("url", help="of the gateway, wss://HOST:PORT")
    token = one.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", help="by which the gateway knows this device; others on this machine may see it")
    token.add_argument("--token-file", type=Path, help="file with the token")
    _take_rows(one)
    one.add_argument("--folder", type=Path, help="for package and states; by default one of this user's for the token")
    one.add_argument("--ca", type=Path, help="PEM file of the authority of the gateway's certificate")
    one.add_argument("--only-when", metavar="COMMAND", help="work only while this command of the shell ends with 0")
    one.add_argument("--keep-labels", action="store_true", help="take part only in runs in which no label is sent")
    one = commands.add_parser("infer", help="inference alone on batches of rows: what training is compared with")
    _take_package(one)
    _take_rows(one)
    one.add_argument("--batches", type=int, default=10, help="how many, 1 or more")
    one = commands.add_parser("profile", help="measure this device, as a fleet file that `halfback plan` reads")
    _take_package(one)
    _take_rows(one)
    one.add_argument("--out", type=Path, required=True, help="the file that is written, JSON")
    one.add_argument("--name", default="this-device", help="of the class")
    one.add_argument("--seconds", type=float, default=5.0, help="to measure for")
    for name, value in _ASSUMED.items():
        one.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=value, help=f"assumed; by default {value:g}"
        )
    return parser


# What a device can't measure by itself.
_ASSUMED = {
    "up_megabits": 10.0,
    "down_megabits": 50.0,
    "latency_seconds": 0.05,
    "server_operations_per_second": 1e12,
}


def _take_package(one: argparse.ArgumentParser) -> None:
    one.add_argument("package", type=Path, help="folder that `halfback package` made")
    one.add_argument("--client", type=int, help="the client's number; by default the package's, else 0")


def _take_rows(one: argparse.ArgumentParser) -> None:
    one.add_argument("--data", required=True, help="file of rows, folder of images, or .npz of them")
    for column in ("text", "pair", "label", "target", "delimiter", "encoding"):
        one.add_argument(f"--{column}", help=f"the rows' {column}" if len(column) > 6 else f"column of the {column}")
    one.add_argument("--skip-bad-rows", action="store_true", help="leave out rows without text or label")
    one.add_argument("--shared", action="store_true", help="take the client's share of rows that all clients have")


def _rows(chosen: argparse.Namespace) -> Rows:
    named = ("text", "pair", "label", "target", "delimiter", "encoding", "skip_bad_rows", "shared")
    return Rows(chosen.data, **{name: getattr(chosen, name) for name in named})


def check(folder: Path) -> dict[str, Any]:
    """Opens a package, whose digests are then right, and does with it what a run begins with.

    Returns:
        What it is, for whoever asked.

    Raises:
        DeviceError: what is wrong with it, or what this device can't do of it.
    """
    package = Package.open(folder)
    manifest = package.manifest
    plan = plan_of(manifest)
    with tempfile.TemporaryDirectory() as scratch:
        shape = rehearsed(package, Path(scratch) / "caches")
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    trained = sum(values.size for values in package.theta().values())
    return {
        "method": plan.method,
        "blocks": manifest["model"]["cut"],
        "trained": trained,
        "weights": manifest["weights"]["format"],
        "package_bytes": size,
        "activations": list(shape),
        "peak_bytes": peak_bytes(),
    }


def infer(folder: Path, rows: Rows, *, client: int | None, batches: int) -> dict[str, Any]:
    """Runs the bottom on so many of a client's batches.

    Args:
        folder: of the package.
        rows: what the client has; nothing may be named of them that the package's run doesn't read.
        client: its number; None for the package's own, or the first.
        batches: 1 or more.

    Returns:
        What that took: batches, rows, seconds, bytes.

    Raises:
        DeviceError: of the package, of the rows, or of a number that is none.
    """
    if batches < 1:
        raise DeviceError(f"--batches {batches}: 1 or more are allowed")
    begun = time.perf_counter()
    package, bottom, feed = alone(folder, rows, client)
    theta, ready, seconds = package.theta(), time.perf_counter() - begun, []
    for _ in range(batches):
        batch, at = feed.next(), time.perf_counter()
        with running_graphs():
            bottom.forward(batch.inputs, theta.__getitem__)
        seconds.append(time.perf_counter() - at)
    middle = sorted(seconds)[len(seconds) // 2]
    told = {"batches": batches, "rows": len(feed), "ready_seconds": ready, "batch_seconds": middle}
    return told | {"peak_bytes": peak_bytes()}


if __name__ == "__main__":
    main()
