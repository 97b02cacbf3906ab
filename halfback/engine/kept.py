"""What a checkpoint holds, checked before any of it is used: it may be another's, damaged, or made up."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from halfback.engine.client_side import ClientSide
from halfback.engine.remote.frames import Ancestor
from halfback.engine.server_side import ServerSide
from halfback.engine.tensors import moments, trained_above, under
from halfback.errors import HalfbackError, UserError, first_line, shown
from halfback.optimizers.table import form
from halfback.parties.agreed import rows_below_state

# Strict: these go on as they are, so a text that reads as a number, true or 1.0 is none.
Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
_Client = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,17})$")]
Sent = dict[str, dict[str, Count]]
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_MOST_STEPS = 1 << 24  # that float32 can count


class _Bytes(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    up: Sent
    down: Sent

    def total(self, direction: str) -> int:
        return sum(sum(roles.values()) for roles in getattr(self, direction).values())


class _Away(BaseModel):
    """Of a run whose clients are elsewhere."""

    model_config = ConfigDict(extra="forbid")

    lineage: str
    ancestry: list[Ancestor]
    rounds: Count
    cursors: dict[_Client, Count]
    rows: dict[_Client, Count] = Field(default_factory=dict)


class _Kept(BaseModel):
    """Of a client in the server's process."""

    model_config = ConfigDict(extra="forbid")

    position: Count
    cursor: Count
    replayed: Count
    link: dict[str, Any]


class EngineValues(BaseModel):
    """The plain values of `Federation.state` and `RemoteServer.state`."""

    model_config = ConfigDict(extra="ignore")

    far: dict[_Client, dict[str, Any]]
    broadcast: dict[str, Any]
    controller: dict[str, Any]
    clients: dict[_Client, _Kept]
    steps: Count
    turns: list[tuple[Count, Count]]
    position: Count
    top_position: Count
    ledger: _Bytes
    seconds: tuple[Seconds, Seconds, Seconds]
    forward_passes: Count
    peaks: tuple[Count, Count, Count]
    releases: Count = 0
    deployment: _Away | None = None


def _check_values(values: Mapping[str, Any], clients: int) -> None:
    """Refuses values that the engine can't go on from; UserError names the first that is wrong."""
    checked(EngineValues, values)
    for number in (*values["far"], *values["clients"]):
        if not 0 <= int(number) < clients:
            raise UserError(f"client {number} is in the checkpoint, 0 to {clients - 1} are allowed")


def checked(kind: type[BaseModel], values: Mapping[str, Any]) -> Any:
    """The values as a model of this kind; UserError names the first that is wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        came = "" if first["type"] == "missing" else f"={shown(first['input'])}"
        raise UserError(f"values.json: {key}{came}: {first['msg']}") from None


def check_state(
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    side: ServerSide,
    client: Callable[[int], ClientSide] | None,
) -> None:
    """Refuses a state that these parties can't go on from, before anything is changed; UserError names what is wrong.

    `client` makes a client of this process; None where they are elsewhere.
    """
    clients, server, needs = side.sampling.clients, side.party, side.algorithm.needs
    _check_values(values, clients)
    if client is not None and (lost := sorted({*values["far"]} ^ {*values["clients"]})):
        raise UserError(f"values.json: client {lost[0]} has a place in one of far and clients, not in both")
    agreed, top = server.agreed.replica, server.top
    fixed = {f"bottom.{name}": p for name, p in agreed.parameters.items()}
    fixed |= moments("bottom_moment", agreed) | {f"top.{n}": p for n, p in trained_above(server).items()}
    if server.averaging is not None:
        fixed |= {f"server_step.{name}": tensor for name, tensor in server.averaging.tensors().items()}
    fixed |= {} if top.replica is None else moments("top_moment", top.replica)
    free = {"controller.": side.controller is not None, "lasting.": needs.lasting is not None}
    free["broadcast."] = side.broadcast is not None
    if "history" in tensors and needs.agreement.keeps_history:
        fixed["history"] = tensors["history"]  # whose form `_check_history` knows
        fixed |= _recent(side, tensors["history"])
    descents = {"top_optimizer": top.descent}
    made = {} if client is None else {number: client(int(number)).party for number in values["clients"]}
    for number, party in made.items():
        descents[f"client.{number}.optimizer"] = party.descent
        free[f"client.{number}.link."] = True
        if (own := needs.agreement.kept_of(party)) is not None:
            fixed |= moments(f"client.{number}.moment", own)
    for prefix, descent in descents.items():
        if descent is not None:
            _check_optimizer(prefix, descent.optimizer, tensors)
            free[f"{prefix}."] = True
    free |= {f"far.{number}.": True for number in values["far"]}
    _check_lasting(under("lasting.", tensors), clients, agreed.parameters)
    _check_tensors(tensors, fixed, [beginning for beginning, is_there in free.items() if is_there])
    taken = [values["position"], *(kept["position"] for kept in values["clients"].values())]
    _check_history(tensors.get("history"), taken, len(agreed.groups))


def _recent(side: ServerSide, history: Tensor) -> dict[str, Tensor]:
    """In the form that exact gradients of this history's newest rows must have."""
    replica, broadcast = side.party.agreed.replica, side.links.broadcast()
    zeros = torch.zeros(replica.width(0))
    parts = (zeros,) if broadcast is None else broadcast.encode(zeros)[0].parts
    steps = history.shape[0] if history.ndim else 0
    count = min(rows_below_state(replica, sum(part.nbytes for part in parts)), steps)
    return {f"recent.{place}": part.expand(count, *part.shape) for place, part in enumerate(parts) if count}


def _check_tensors(tensors: Mapping[str, Tensor], fixed: Mapping[str, Tensor], free: Iterable[str]) -> None:
    """Refuses tensors that lack one of `fixed`, have one of another shape or dtype, or one that nobody asked for.

    free: how the names of those begin whose number and shapes are not known beforehand.
    """
    for name, like in fixed.items():
        if name not in tensors:
            raise UserError(f"tensor {name} is missing")
        _fits(name, tensors[name], like)
    beginnings = tuple(free)
    for name in tensors:
        if name not in fixed and not name.startswith(beginnings):
            raise UserError(f"tensor {name} is there, and nothing has this name")


def _fits(name: str, found: Tensor, like: Tensor) -> None:
    """Refuses a tensor of another shape or dtype."""
    if found.shape != like.shape or found.dtype != like.dtype:
        raise UserError(
            f"tensor {name} is {found.dtype} {tuple(found.shape)}, {like.dtype} {tuple(like.shape)} is allowed"
        )


def _check_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Refuses a state that is not that of a parameter; one that has taken no step has none."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    allowed = [form(optimizer, parameter) for parameter in parameters]
    found: dict[int, set[str]] = {}
    for name, tensor in under(f"{prefix}.", tensors).items():
        number, _, entry = name.partition(".")
        place = int(number) if _NUMBER.fullmatch(number) else len(parameters)
        if place >= len(parameters) or entry not in allowed[place]:
            raise UserError(f"tensor {prefix}.{name} is there, and nothing has this name")
        _fits(f"{prefix}.{name}", tensor, allowed[place][entry])
        if entry == "step" and not 1 <= tensor.item() <= _MOST_STEPS:
            raise UserError(f"tensor {prefix}.{name} is {tensor.item()}, 1 to {_MOST_STEPS} are allowed")
        found.setdefault(place, set()).add(entry)
    for place, names in found.items():
        for entry in sorted({*allowed[place]} - names):
            raise UserError(f"tensor {prefix}.{place}.{entry} is missing")


def _check_lasting(lasting: Mapping[str, Tensor], clients: int, parameters: Mapping[str, Tensor]) -> None:
    """Refuses what a method keeps of a client that isn't there, and parameters of another form among it."""
    for name, tensor in lasting.items():
        number, _, of_client = name.partition(".")
        if not number.isdecimal() or int(number) >= clients or not of_client:
            raise UserError(f"tensor lasting.{name} is there, and nothing has this name")
        if of_client in parameters:
            _fits(f"lasting.{name}", tensor, parameters[of_client])


def _check_history(history: Tensor | None, positions: Iterable[int], groups: int) -> None:
    """Refuses a history that is none, and a replica that has gone beyond it."""
    if history is None:
        return
    if history.ndim != 2 or history.dtype != torch.float32 or history.shape[1] % groups:
        raise UserError(f"tensor history is {history.dtype} {tuple(history.shape)}, torch.float32 (steps, P) is due")
    if (most := max(positions, default=0)) > len(history):
        raise UserError(f"values.json: position {most} contradicts the history, which has {len(history)} steps")


def check_names(prefix: str, tensors: Iterable[str], taken: Iterable[str]) -> None:
    """Refuses a tensor that would be passed over: `taken` are those that its owner has now that they are put back."""
    if unknown := sorted({*tensors} - {*taken}):
        raise UserError(f"tensor {prefix}{unknown[0]} is there, and nothing has this name")


def check_thresholds(thresholds: Mapping[str, Any]) -> None:
    """Refuses a controller's thresholds that no similarity could reach."""
    for value in thresholds.values():
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
            raise UserError(f"controller: a threshold is {shown(value)}, -1 to 1 are allowed")


@contextmanager
def going_on() -> Iterator[None]:
    """While a state is put back: what a codec or a controller, also of another package, can't read is one line."""
    try:
        yield
    except HalfbackError as error:
        raise UserError(f"the checkpoint can't be gone on from: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {shown(first_line(error))}"
        raise UserError(f"the checkpoint can't be gone on from: {why}") from None
