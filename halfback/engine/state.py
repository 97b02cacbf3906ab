"""What a checkpoint holds of a run, as named tensors and plain values, and how the parties go on from it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from halfback.engine.client_side import ClientSide
from halfback.engine.kept import check_names, check_state, check_thresholds
from halfback.engine.server_side import ServerSide
from halfback.engine.tensors import (
    load_moments,
    load_optimizer_tensors,
    moments,
    optimizer_tensors,
    trained_above,
    under,
)

State = tuple[dict[str, Tensor], dict[str, Any]]


def state_of_server(side: ServerSide) -> State:
    """All that the server needs to go on."""
    server, meters = side.party, side.meters
    server.settle()
    tensors = {f"bottom.{name}": p.detach() for name, p in server.replica.parameters.items()}
    tensors |= moments("bottom_moment", server.replica)
    tensors |= {f"top.{name}": p.detach() for name, p in trained_above(server).items()}
    if server.top_replica is not None:
        tensors |= moments("top_moment", server.top_replica)
    if server.optimizer is not None:
        tensors |= optimizer_tensors("top_optimizer", server.optimizer)
    if server.history:
        tensors["history"] = torch.stack(server.history)
    for number, held in server.lasting.items():
        tensors |= {f"lasting.{number}.{name}": tensor for name, tensor in held.items()}
    steered: dict[str, Any] = {}
    if side.controller is not None:
        of_controller, steered = side.controller.state_dict()
        tensors |= {f"controller.{name}": tensor for name, tensor in of_controller.items()}
    far: dict[str, Any] = {}
    for number, end in side.far.items():
        of_end, far[str(number)] = end.state()
        tensors |= {f"far.{number}.{name}": tensor for name, tensor in of_end.items()}
    return tensors, {
        "far": far,
        "controller": steered,
        "steps": server.steps,
        "turns": server.turns,
        "position": server.replica.position,
        "top_position": server.top_replica.position if server.top_replica else 0,
        "ledger": side.ledger.state_dict(),
        "seconds": [meters.client.seconds, meters.server.seconds, meters.wire.seconds],
        "forward_passes": meters.forward_passes,
        "peaks": [meters.client_peak_bytes, meters.client_inference_peak_bytes, meters.server_peak_bytes],
    }


@torch.no_grad()
def load_server(
    side: ServerSide,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    client: Callable[[int], ClientSide] | None = None,
) -> None:
    """Puts back what `state_of_server` took; nothing is changed if it is not of such parties.

    Args:
        side: the server to go on with.
        tensors: all of a checkpoint.
        values: all of a checkpoint.
        client: makes a client of this process, for those that the checkpoint has; None where clients are elsewhere.

    Raises:
        UserError: names what is wrong.
    """
    server, meters = side.party, side.meters
    check_state(tensors, values, side, client)
    device = side.links.device
    server.passes, server.kept, server.lasting, server.losses = {}, {}, {}, []
    for name, tensor in under("lasting.", tensors).items():
        number, of_client = name.split(".", 1)
        server.lasting.setdefault(int(number), {})[of_client] = tensor.to(device)
    for name, parameter in server.replica.parameters.items():
        parameter.copy_(tensors[f"bottom.{name}"])
    for name, parameter in trained_above(server).items():
        parameter.copy_(tensors[f"top.{name}"])
    load_moments("bottom_moment", server.replica, tensors)
    server.steps = values["steps"]
    server.turns = [(row, step) for row, step in values["turns"]]
    server.replica.position = values["position"]
    if server.top_replica is not None:
        load_moments("top_moment", server.top_replica, tensors)
        server.top_replica.position = values["top_position"]
    if server.optimizer is not None:
        load_optimizer_tensors("top_optimizer", server.optimizer, tensors)
    server.history = list(tensors["history"].to(device)) if "history" in tensors else []
    server.settled = len(server.history)
    if side.controller is not None:
        side.controller.load_state_dict(under("controller.", tensors), values["controller"])
        check_thresholds(side.controller.thresholds())
        check_names("controller.", under("controller.", tensors), side.controller.state_dict()[0])
    side.far.clear()
    for number, of_end in values["far"].items():
        end, remembered = side.end(int(number)), under(f"far.{number}.", tensors)
        end.load_state(remembered, of_end)
        check_names(f"far.{number}.", remembered, end.state()[0])
    side.ledger.load_state_dict(values["ledger"])
    meters.client.seconds, meters.server.seconds, meters.wire.seconds = values["seconds"]
    meters.forward_passes = values["forward_passes"]
    meters.client_peak_bytes, meters.client_inference_peak_bytes, meters.server_peak_bytes = values["peaks"]


def state_of_client(number: int, side: ClientSide, *, shares: bool) -> State:
    """What a client in the server's process needs to go on beside what the server keeps.

    Its θ is never in it: clients that share the server's have it there, others are sent theirs when a round begins.
    """
    party, prefix = side.party, f"client.{number}"
    of_link, link = side.near.state()
    tensors = {f"{prefix}.link.{name}": tensor for name, tensor in of_link.items()}
    if party.optimizer is not None:
        tensors |= optimizer_tensors(f"{prefix}.optimizer", party.optimizer)
    if not shares:  # what moves them is theirs
        tensors |= moments(f"{prefix}.moment", party.replica)
    return tensors, {
        "position": party.position,
        "cursor": party.cursor,
        "replayed": party.replica.position,
        "link": link,
    }


@torch.no_grad()
def load_client(
    number: int, side: ClientSide, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, shares: bool
) -> None:
    """Puts back what `state_of_client` took."""
    party, prefix = side.party, f"client.{number}"
    party.position, party.cursor = values["position"], values["cursor"]
    remembered = under(f"{prefix}.link.", tensors)
    side.near.load_state(remembered, values["link"])
    check_names(f"{prefix}.link.", remembered, side.near.state()[0])
    if party.optimizer is not None:
        load_optimizer_tensors(f"{prefix}.optimizer", party.optimizer, tensors)
    if not shares:
        load_moments(f"{prefix}.moment", party.replica, tensors)
        party.replica.position = values["replayed"]
