"""The server of a run whose clients answer questions: on other machines, or on device packages in this process."""

from collections.abc import Mapping
from typing import Any

from halfback.assembly import Built
from halfback.engine.remote.frames import Prepare
from halfback.engine.remote.presence import Beginning, Carrier, Events, Terms
from halfback.engine.remote.server import RemoteServer
from halfback.engine.remote.weights import at_the_beginning, digest_of
from halfback.wire.messages import Weights
from halfback.wire.packing import pack


def remote_server(
    built: Built, tree: Mapping[str, Any], carrier: Carrier, token: str, terms: Terms, events: Events
) -> RemoteServer:
    """The server, before anything is trained: its clients begin with the weights that it has now.

    Args:
        built: the run's parties, of which the server's side is used.
        tree: the settings that clients are told.
        carrier: what reaches the clients.
        token: 16 hexadecimal digits that tell this run from others where a client keeps its states.
        terms: how long the server waits.
        events: takes what happens to clients.
    """
    config, ground = built.config, built.ground
    theta = built.federation.server.party.agreed.replica.parameters
    kinds = {config.model.cut_of(number): number for number in range(config.clients)}
    weights = {at: at_the_beginning(ground.parts(number), theta) for at, number in kinds.items()}
    digests = {at: digest_of(tensors) for at, tensors in weights.items()}

    def question(number: int) -> Prepare:
        classes, digest = tuple(built.task.label_names), digests[config.model.cut_of(number)]
        return Prepare(run=token, client=number, config=dict(tree), label_names=classes, weights=digest)

    def packed(number: int) -> bytes:
        return pack(Weights(tuple(weights[config.model.cut_of(number)].values()))).data

    return RemoteServer(built.federation.server, carrier, Beginning(question, packed), terms, events)
