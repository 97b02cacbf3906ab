"""Fleets: the classes of devices that a run is planned or timed for, the server, and the links between them.

A fleet is a YAML file, or one that ships with the package (`fleets()`). Megabytes are 10^6 bytes, megabits 10^6 bits;
an operation is one addition or one multiplication, so a multiply-add is two.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from halfback.config import yaml_reading
from halfback.errors import UserError, offer, shown
from halfback.zeroth.directions import seed_for

_MOST = 1e18  # of any rate
_NAME, _LONGEST = r"[\w .,+()-]+", 60  # of a class


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class DeviceClass(_Section):
    """Devices that are alike."""

    name: str = Field(min_length=1, max_length=_LONGEST, pattern=f"^{_NAME}$")
    memory_megabytes: float = Field(gt=0, le=1e9)
    """What a client's tensors may take at most."""
    operations_per_second: float = Field(gt=0, le=_MOST)
    """Sustained, in a forward pass."""
    backward_operations_per_second: float | None = Field(default=None, gt=0, le=_MOST)
    """In a backward pass; null where it is as fast as a forward pass."""
    block_seconds: float = Field(default=0, ge=0, le=1e6)
    """Of each block of the model in each pass, there or back, beside its operations, however few rows it has."""
    step_seconds: float = Field(default=0, ge=0, le=1e6)
    """Of each step, beside its passes."""
    bytes_per_second: float | None = Field(default=None, gt=0, le=_MOST)
    """At which weights come from memory: no pass is faster than all of them are read. Null where that is never what a
    pass waits for."""
    up_megabits: float = Field(gt=0, le=1e9)
    """A second, of the device's own link."""
    down_megabits: float = Field(gt=0, le=1e9)
    latency_seconds: float = Field(default=0, ge=0, le=1e6)
    """Of a round trip: what a ping says."""
    share: float = Field(default=1, gt=0, le=1e9)
    """Of the fleet, in proportion to the other classes'."""
    source: str = Field(min_length=1, max_length=4000)
    """Where each figure is from."""


class Fleet(_Section):
    """Classes of devices, their server, and what they share of a network."""

    classes: tuple[DeviceClass, ...] = Field(min_length=1, max_length=200)
    server_operations_per_second: float = Field(gt=0, le=_MOST)
    """Sustained; the server does its work for one client after another."""
    server_backward_operations_per_second: float | None = Field(default=None, gt=0, le=_MOST)
    """In a backward pass; null where it is as fast as a forward pass."""
    server_block_seconds: float = Field(default=0, ge=0, le=1e6)
    """As a class's `block_seconds`."""
    server_step_seconds: float = Field(default=0, ge=0, le=1e6)
    """As a class's `step_seconds`, for each client."""
    uplink_megabits: float | None = Field(default=None, gt=0, le=1e9)
    """A second, that all devices of a step share on their way to the server; null where each has its own link alone."""
    downlink_megabits: float | None = Field(default=None, gt=0, le=1e9)
    """The same on their way back."""
    source: str = Field(default="", max_length=4000)
    """Where the server's figures and the shared links' are from."""

    @model_validator(mode="after")
    def _named_apart(self) -> "Fleet":
        names = [each.name for each in self.classes]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise PydanticCustomError("names", "two classes are called {name}", {"name": repr(twice)})
        return self


def check_name(name: str) -> None:
    """Refuses what no class can be called; UserError names it."""
    if not re.fullmatch(_NAME, name) or len(name) > _LONGEST:
        raise UserError(f"name {shown(name)}: 1 to {_LONGEST} letters, digits, spaces and any of _.,+()- are allowed")


def fleets() -> dict[str, str]:
    """Shipped fleets: name → what it is of (the comment on its first line)."""
    found = {entry.name.removesuffix(".yaml"): entry for entry in _shipped() if entry.name.endswith(".yaml")}
    return {name: found[name].read_text().splitlines()[0].lstrip("# ") for name in sorted(found)}


def read_fleet(fleet: str | Path) -> Fleet:
    """A fleet, by a shipped name or the path of a YAML file.

    Raises:
        UserError: nobody knows it, or it is none; the message is one line.
    """
    name = str(fleet)
    if isinstance(fleet, Path) or name.endswith((".yaml", ".yml", ".json")) or "/" in name:
        path = Path(fleet)
        if path.exists() and not path.is_file():  # a pipe would never end
            raise UserError(f"{path} is not a file")
        return _of(yaml_reading.read(path, f"fleet {name!r}"), name)
    known = fleets()
    if name not in known:
        raise UserError(f"fleet {shown(name)} is unknown; {offer(name, known)} (or the path of a YAML file)")
    text = (files("halfback") / "planning" / "fleets" / f"{name}.yaml").read_text()
    return _of(yaml_reading.parse(text, f"fleet {name!r}"), name)


def draw(fleet: Fleet, clients: int, seed: int) -> tuple[DeviceClass, ...]:
    """The class of each client: as many of each as its share says, in an order that the seed draws.

    Shares are rounded by largest remainder, the earlier class first where two are alike.
    """
    total = sum(each.share for each in fleet.classes)
    wanted = [clients * each.share / total for each in fleet.classes]
    counts = [int(want) for want in wanted]
    by_remainder = sorted(range(len(wanted)), key=lambda place: counts[place] - wanted[place])
    for place in by_remainder[: clients - sum(counts)]:
        counts[place] += 1
    drawn = [each for each, count in zip(fleet.classes, counts, strict=True) for _ in range(count)]
    generator = np.random.Generator(np.random.Philox(key=seed_for(seed, "fleet")))
    return tuple(drawn[place] for place in generator.permutation(clients))


def _shipped() -> Any:
    return (files("halfback") / "planning" / "fleets").iterdir()


def _of(found: Any, name: str) -> Fleet:
    where = f"fleet {name!r}"
    if not isinstance(found, dict):
        raise UserError(f"{where} must be a mapping with classes, server_operations_per_second and what they share")
    settled = yaml_reading.settled(found, Fleet)
    if isinstance(settled.get("classes"), list):
        settled["classes"] = [yaml_reading.settled(each, DeviceClass) for each in found["classes"]]
    try:
        return Fleet.model_validate(settled)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        message = first["msg"][0].lower() + first["msg"][1:]
        if first["type"] == "missing":
            raise UserError(f"{where}: {path} is missing") from None
        if first["type"] == "extra_forbidden":
            kind = DeviceClass if path.startswith("classes.") else Fleet
            raise UserError(f"{where}: {path} is unknown; {offer(str(first['loc'][-1]), kind.model_fields)}") from None
        begin = f"{path}={shown(first['input'])}: " if path else ""
        raise UserError(f"{where}: {begin}{message}") from None
