"""Small fleets and works for the tests."""

from typing import Any

from halfback.planning.profiles import DeviceClass, Fleet
from halfback.planning.work import Work


def device(name: str = "a", **changes: Any) -> DeviceClass:
    """Of 1 GB, 1e9 operations and 8 Mbit (1 MB) a second each way."""
    said: dict[str, Any] = {"name": name, "memory_megabytes": 1000, "operations_per_second": 1e9, "source": "ours"}
    return DeviceClass.model_validate(said | {"up_megabits": 8, "down_megabits": 8} | changes)


def fleet(*classes: DeviceClass, **changes: Any) -> Fleet:
    """With a server of 1e10 operations a second."""
    return Fleet(classes=classes or (device(),), **({"server_operations_per_second": 1e10} | changes))


def work(**changes: Any) -> Work:
    """3 passes of 1 s, 1 MB up, half of that down, 0.5 s of the server."""
    said: dict[str, Any] = {
        "peak_bytes": 100_000_000,
        "parameter_bytes": 50_000_000,
        "up_bytes": 1e6,
        "down_bytes": 5e5,
    }
    said |= {"device_forward": 1e9, "passes": 3, "device_backward": 0.0}
    said |= {"server_forward": 2e9, "server_backward": 3e9, "exchanges": 2}
    said |= {"device_blocks": 9, "server_blocks": 6}
    return Work(**(said | changes))
