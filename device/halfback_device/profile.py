"""The rate of this device, from some seconds of a package's own passes: a fleet of one class, as a plan reads it.

Operations are counted from the weights' shapes, two for each multiply-add: a matrix runs on each token, a convolution's
kernel on each place of what its block gives, and attention on each pair of places of a row.
"""

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfback_device.alone import alone
from halfback_device.data import Rows
from halfback_device.errors import running_graphs
from halfback_device.layout import lay_out
from halfback_device.package import Package
from halfback_device.plan import plan_of

_COPIED = 1 << 26  # bytes that are copied to find out how fast memory is


def profile(
    folder: Path, rows: Rows, *, client: int | None, seconds: float, assumed: Mapping[str, Any]
) -> dict[str, Any]:
    """Runs the bottom on a client's batches for about so many seconds.

    Args:
        folder: of the package.
        rows: the client's, or of all clients.
        client: its number; None for the package's own, or the first.
        seconds: to measure for.
        assumed: what a device can't measure, by the names of a fleet file.

    Returns:
        The fleet.

    Raises:
        DeviceError: of the package, or of the rows.
    """
    package, bottom, feed = alone(folder, rows, client)
    theta, rates = package.theta(), list[float]()
    end = 0.0
    while time.perf_counter() < end or not rates:
        batch = feed.next()
        with running_graphs():
            entered = bottom.noting(batch.inputs, theta.__getitem__, len(package.manifest["graphs"]["blocks"]))
            begun = time.perf_counter()
            bottom.forward(batch.inputs, theta.__getitem__)
        taken = time.perf_counter() - begun
        results = [*entered[1].entered[1:], entered[0]]
        if end:  # the first warms up
            rates.append(operations(package, batch.inputs, entered[1].entered[0], results) / max(taken, 1e-9))
        else:
            end = time.perf_counter() + seconds
    method = plan_of(package.manifest).method
    source = f"measured with a package of {method} on {platform.machine()}, 1 thread; link and server are assumed"
    of_class = {
        "name": assumed["name"],
        "memory_megabytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6,
        "operations_per_second": _rounded(float(np.median(rates))),
        "bytes_per_second": _rounded(_copying()),
        **{key: assumed[key] for key in ("up_megabits", "down_megabits", "latency_seconds")},
        "share": 1.0,
        "source": source,
    }
    return {"classes": [of_class], "server_operations_per_second": assumed["server_operations_per_second"]}


def operations(
    package: Package, inputs: Mapping[str, NDArray[Any]], first: NDArray[Any], results: list[NDArray[Any]]
) -> int:
    """Of a forward pass of the bottom on these inputs.

    Args:
        package: whose graphs ran.
        inputs: as `Bottom.forward` takes them.
        first: what entered the first block.
        results: what each block gave; the last may be laid out as it is sent.

    Returns:
        Two for each multiply-add of a product of matrices, a convolution or attention.
    """
    manifest, theta = package.manifest, {name: values.shape for name, values in package.theta().items()}
    width = manifest["model"].get("width")
    rows, places = first.shape[0], first.shape[1]
    if manifest["model"]["kind"] != "image":
        rows, places = lay_out([int(length) for length in inputs["lengths"]], width).texts.shape
    total = 0
    embedding = _shapes(package, theta, manifest["graphs"]["embed"]["weights"])
    total += sum(2 * _size(shape) * _outputs(first) for shape in embedding if len(shape) == 4)
    for block, result in zip(manifest["graphs"]["blocks"], results, strict=True):
        for shape in _shapes(package, theta, block["weights"]):
            if len(shape) == 2:
                total += 2 * _size(shape) * rows * places
            elif len(shape) == 4:
                total += 2 * _size(shape) * _outputs(result)
        if first.ndim == 3:
            total += 4 * rows * places * places * first.shape[2]
    return total


def _shapes(package: Package, theta: Mapping[str, Any], names: list[str]) -> list[tuple[int, ...]]:
    """Of the weights by these names, of which those of θ are not among the frozen ones."""
    return [theta[name[2:]] if name[2:] in theta else package.weights[name].shape for name in names]


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _outputs(result: NDArray[Any]) -> int:
    """Places that a convolution gave, of all images: of (B, C, H, W), or of the tokens of patches (B, 1 + T, H)."""
    return int(result.shape[0] * (result.shape[2] * result.shape[3] if result.ndim == 4 else result.shape[1] - 1))


def _copying() -> float:
    source = np.ones(_COPIED, np.uint8)
    target = np.zeros_like(source)
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        np.copyto(target, source)
        taken.append(time.perf_counter() - begun)
    return 2 * _COPIED / float(np.median(taken))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def written(fleet: Mapping[str, Any]) -> str:
    """JSON, which is YAML too."""
    return json.dumps(fleet, indent=2) + "\n"
