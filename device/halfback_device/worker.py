"""The process that does a client's work: it replies to the questions that come on a socket.

It is what a site starts, and starts again when it is killed: then it goes on from the state on its disk.
"""

import json
import logging
import socket
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from halfback_device.client import Device
from halfback_device.data import Rows
from halfback_device.errors import DeviceError, PeerError
from halfback_device.frames import Longest, refused
from halfback_device.stream import Gone, read_frame, write_frame

_KINDS: Mapping[str, type] = {"descriptor": int, "package": str, "folder": str, "rows": dict, "keep_labels": bool}


def work(line: socket.socket, device: Device) -> None:
    """Replies until the other side is gone, or has sent what is no frame."""
    while True:
        try:
            asked = read_frame(line, Longest(device.takes))
        except PeerError as error:
            write_frame(line, refused("peer", error))
            if error.field == "frame":  # nothing of it was read, so what follows on this line is no frame
                return
            continue
        write_frame(line, device.reply(*asked))


def serve(arguments: str) -> None:
    """Works until the other side is gone.

    Args:
        arguments: JSON of `descriptor`, of the socket; `package` and `folder`, paths of the device package and of where
            states are kept; `rows`, the fields of `data.Rows`; and `keep_labels`, which may be left out.

    Raises:
        DeviceError: they are other ones.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    told = _read(arguments)
    device = Device(Path(told["package"]), _rows(told["rows"]), Path(told["folder"]), keep_labels=told["keep_labels"])
    try:
        with socket.socket(fileno=told["descriptor"]) as line:
            work(line, device)
    except Gone:
        return
    except OSError as error:
        raise DeviceError(f"descriptor {told['descriptor']} is no socket: {error.strerror}") from None


def _read(arguments: str) -> dict[str, Any]:
    try:
        told = json.loads(arguments)
    except (ValueError, RecursionError):
        raise DeviceError("the worker's arguments are no JSON") from None
    told = {"keep_labels": False} | told if isinstance(told, dict) else {}
    if told.keys() != _KINDS.keys() or any(type(told[name]) is not kind for name, kind in _KINDS.items()):
        raise DeviceError(f"the worker takes {', '.join(_KINDS)}")
    return told


def _rows(told: Mapping[str, Any]) -> Rows:
    known = {field.name for field in fields(Rows)}
    switches = {"skip_bad_rows", "shared"}
    for name, value in told.items():
        fits = isinstance(value, bool) if name in switches else isinstance(value, str)
        if name not in known or not (fits or (value is None and name not in switches | {"path"})):
            raise DeviceError(f"rows.{name!s:.60} is unknown or of another kind; known: {', '.join(sorted(known))}")
    if "path" not in told:
        raise DeviceError("rows.path is missing")
    return Rows(**told)
