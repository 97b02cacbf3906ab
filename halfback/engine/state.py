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
from halfback.parties.protocol import Algorithm

State = tuple[dict[str, Tensor], dict[str, Any]]


def state_of_server(side: ServerSide) -> State:
    """All that the server needs to go on."""
    server, meters = side.party, side.meters
    top, agreed = server.top, server.agreed
    agreed.settle()
    tensors = {f"bottom.{name}": p.detach() for name, p in agreed.replica.parameters.items()}
    tensors |= moments("bottom_moment", agreed.replica)
    tensors |= {f"top.{name}": p.detach() for name, p in trained_above(server).items()}
    if top.replica is not None:
        tensors |= moments("top_moment", top.replica)
    if top.descent is not None:
        tensors |= optimizer_tensors("top_optimizer", top.descent.optimizer)
    if agreed.rows:
        tensors["history"] = torch.stack(agreed.rows)
    for place, parts in enumerate(zip(*agreed.recent, strict=True)):
        tensors[f"recent.{place}"] = torch.stack(parts)
    if server.averaging is not None:
        tensors |= {f"server_step.{name}": tensor for name, tensor in server.averaging.tensors().items()}
    tensors |= {f"lasting.{name}": tensor for name, tensor in server.lasting().items()}
    steered: dict[str, Any] = {}
    if side.controller is not None:
        of_controller, steered = side.controller.state_dict()
        tensors |= {f"controller.{name}": tensor for name, tensor in of_controller.items()}
    far: dict[str, Any] = {}
    for number, end in side.far.items():
        of_end, far[str(number)] = end.state()
        tensors |= {f"far.{number}.{name}": tensor for name, tensor in of_end.items()}
    broadcast: dict[str, Any] = {}
    if side.broadcast is not None:
        of_broadcast, broadcast = side.broadcast.state()
        tensors |= {f"broadcast.{name}": tensor for name, tensor in of_broadcast.items()}
    return tensors, {
        "far": far,
        "broadcast": broadcast,
        "controller": steered,
        "steps": server.steps,
        "turns": agreed.turns,
        "position": agreed.replica.position,
        "top_position": top.replica.position if top.replica else 0,
        "ledger": side.ledger.state_dict(),
        "seconds": [meters.client.seconds, meters.server.seconds, meters.wire.seconds],
        "forward_passes": meters.forward_passes,
        "releases": meters.releases,
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
    top, agreed = server.top, server.agreed
    check_state(tensors, values, side, client)
    device = side.links.device
    server.begin_anew()
    if lasting := under("lasting.", tensors):
        kind = side.algorithm.needs.lasting
        assert kind is not None, "who keeps nothing so long has no such tensors"
        server.recall(kind).load({name: tensor.to(device) for name, tensor in lasting.items()})
    for name, parameter in agreed.replica.parameters.items():
        parameter.copy_(tensors[f"bottom.{name}"])
    for name, parameter in trained_above(server).items():
        parameter.copy_(tensors[f"top.{name}"])
    load_moments("bottom_moment", agreed.replica, tensors)
    for name, tensor in server.averaging.tensors().items() if server.averaging is not None else ():
        tensor.copy_(tensors[f"server_step.{name}"])
    server.steps = values["steps"]
    agreed.turns = [(row, step) for row, step in values["turns"]]
    agreed.replica.position = values["position"]
    if top.replica is not None:
        load_moments("top_moment", top.replica, tensors)
        top.replica.position = values["top_position"]
    if top.descent is not None:
        load_optimizer_tensors("top_optimizer", top.descent.optimizer, tensors)
    agreed.rows = list(tensors["history"].to(device)) if "history" in tensors else []
    agreed.settled = len(agreed.rows)
    recent = under("recent.", tensors)
    by_row = zip(*(recent[str(place)].to(device) for place in range(len(recent))), strict=True)
    agreed.recent = [tuple(part.clone() for part in parts) for parts in by_row]
    if side.controller is not None:
        side.controller.load_state_dict(under("controller.", tensors), values["controller"])
        check_thresholds(side.controller.thresholds())
        check_names("controller.", under("controller.", tensors), side.controller.state_dict()[0])
    side.far.clear()
    for number, of_end in values["far"].items():
        end, remembered = side.end(int(number)), under(f"far.{number}.", tensors)
        end.load_state(remembered, of_end)
        check_names(f"far.{number}.", remembered, end.state()[0])
    if side.broadcast is not None:
        remembered = under("broadcast.", tensors)
        side.broadcast.load_state(remembered, values["broadcast"])
        check_names("broadcast.", remembered, side.broadcast.state()[0])
    side.ledger.load_state_dict(values["ledger"])
    meters.client.seconds, meters.server.seconds, meters.wire.seconds = values["seconds"]
    meters.forward_passes = values["forward_passes"]
    meters.client_peak_bytes, meters.client_inference_peak_bytes, meters.server_peak_bytes = values["peaks"]
    # What was sent stays sent, also where a run goes back.
    meters.releases = max(meters.releases, side.links.releases.most, values.get("releases", 0))


def state_of_client(number: int, side: ClientSide, algorithm: Algorithm) -> State:
    """What a client in the server's process needs to go on beside what the server keeps.

    Its θ is never in it: clients that share the server's have it there, others are sent theirs when a round begins.
    """
    party, prefix = side.party, f"client.{number}"
    of_link, link = side.near.state()
    tensors = {f"{prefix}.link.{name}": tensor for name, tensor in of_link.items()}
    if party.descent is not None:
        tensors |= optimizer_tensors(f"{prefix}.optimizer", party.descent.optimizer)
    if (own := algorithm.needs.agreement.kept_of(party)) is not None:
        tensors |= moments(f"{prefix}.moment", own)
    return tensors, {
        "position": party.theta.position,
        "cursor": party.feed.cursor,
        "replayed": party.theta.replica.position,
        "link": link,
    }


@torch.no_grad()
def load_client(
    number: int, side: ClientSide, tensors: Mapping[str, Tensor], values: Mapping[str, Any], algorithm: Algorithm
) -> None:
    """Puts back what `state_of_client` took."""
    party, prefix = side.party, f"client.{number}"
    party.theta.position, party.feed.cursor = values["position"], values["cursor"]
    remembered = under(f"{prefix}.link.", tensors)
    side.near.load_state(remembered, values["link"])
    check_names(f"{prefix}.link.", remembered, side.near.state()[0])
    if party.descent is not None:
        load_optimizer_tensors(f"{prefix}.optimizer", party.descent.optimizer, tensors)
    if (own := algorithm.needs.agreement.kept_of(party)) is not None:
        load_moments(f"{prefix}.moment", own, tensors)
        own.position = values["replayed"]
