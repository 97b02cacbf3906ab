"""The command `halfback-device`: checks a package, works for a site, and runs inference alone."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from halfback_device.batches import Feed
from halfback_device.data import Rows, own_split
from halfback_device.errors import DeviceError, PackageError
from halfback_device.package import Package
from halfback_device.plan import plan_of
from halfback_device.profile import profile, written
from halfback_device.runtime import Bottom
from halfback_device.seeds import seed_for
from halfback_device.session import peak_bytes, rehearsed
from halfback_device.worker import serve


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; an error is one line on standard error, and exit status 2."""
    chosen = _parser().parse_args(arguments)
    try:
        match chosen.command:
            case "check":
                check(chosen.package)
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
            case _:
                infer(chosen.package, _rows(chosen), client=chosen.client, batches=chosen.batches)
    except DeviceError as error:
        print(f"halfback-device: {error}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="halfback-device", description="A client of halfback with an inference runtime and nothing else."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("check", help="verify a package, and do with it what a run begins with")
    one.add_argument("package", type=Path, help="folder that `halfback package` made")
    one = commands.add_parser("worker", help="reply to the questions on a socket; a site's process starts this")
    one.add_argument("arguments", help="JSON: descriptor, package, folder, rows, keep_labels")
    one = commands.add_parser("infer", help="inference alone on batches of rows: what training is compared with")
    _take_rows(one)
    one.add_argument("--batches", type=int, default=10, help="how many")
    one = commands.add_parser("profile", help="measure this device, as a fleet file that `halfback plan` reads")
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


def _take_rows(one: argparse.ArgumentParser) -> None:
    one.add_argument("package", type=Path, help="folder that `halfback package` made")
    one.add_argument("--data", required=True, help="file of rows, folder of images, or .npz of them")
    for column in ("text", "pair", "label", "target", "delimiter", "encoding"):
        one.add_argument(f"--{column}", help=f"the rows' {column}" if len(column) > 6 else f"column of the {column}")
    one.add_argument("--skip-bad-rows", action="store_true", help="leave out rows without text or label")
    one.add_argument("--shared", action="store_true", help="take the client's share of rows that all clients have")
    one.add_argument("--client", type=int, default=0, help="the client's number")


def _rows(chosen: argparse.Namespace) -> Rows:
    named = ("text", "pair", "label", "target", "delimiter", "encoding", "skip_bad_rows", "shared")
    return Rows(chosen.data, **{name: getattr(chosen, name) for name in named})


def check(folder: Path) -> None:
    """Opens a package, whose digests are then right, and does with it what a run begins with.

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
    told = {
        "method": plan.method,
        "blocks": manifest["model"]["cut"],
        "trained": trained,
        "weights": manifest["weights"]["format"],
        "package_bytes": size,
        "activations": list(shape),
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(told))


def infer(folder: Path, rows: Rows, *, client: int, batches: int) -> None:
    """Runs the bottom on so many of a client's batches, and says what that took.

    Raises:
        DeviceError: of the package, or of the rows.
    """
    begun = time.perf_counter()
    package = Package.open(folder)
    plan, bottom = plan_of(package.manifest), Bottom(package)
    feed = Feed(
        own_split(rows, package.manifest, package.folder, client),
        size=plan.batch_size,
        seed=seed_for(plan.seed, "order", client),
    )
    theta, ready, seconds = package.theta(), time.perf_counter() - begun, []
    for _ in range(batches):
        batch, at = feed.next(), time.perf_counter()
        try:
            bottom.forward(batch.inputs, theta.__getitem__)
        except DeviceError:
            raise
        except Exception as error:  # of the runtime, whose errors are of many kinds
            raise PackageError(f"the package's graphs can't be run: {type(error).__name__}: {error!s:.200}") from None
        seconds.append(time.perf_counter() - at)
    middle = sorted(seconds)[len(seconds) // 2] if seconds else 0.0
    told = {"batches": batches, "rows": len(feed), "ready_seconds": ready, "batch_seconds": middle}
    print(json.dumps(told | {"peak_bytes": peak_bytes()}))
