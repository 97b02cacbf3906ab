"""One client alone, on a machine that has nothing else of the run: it loads its own part of the model, and its rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from halfback.assembly.choices import check, device_of
from halfback.assembly.clients import Clients
from halfback.assembly.fingerprint import fingerprint
from halfback.assembly.given import Given
from halfback.assembly.ground import held_by, lay, make_links
from halfback.assembly.local_models import make_locals
from halfback.assembly.sources import Seat, client_sources, site_source
from halfback.assembly.whole import has_weights, load
from halfback.config import RunConfig
from halfback.engine.client_side import ClientSide
from halfback.telemetry.meters import Meters


@dataclass(frozen=True)
class BuiltClient:
    """A client, and what it works on; its `side` has weights of the model's files, or is to be sent the server's."""

    side: ClientSide
    fingerprint: Mapping[str, str]


def build_client(config: RunConfig, seat: Seat, *, scratch: Path | None = None) -> BuiltClient:
    """A client whose server is elsewhere.

    What it doesn't hold of the model is neither read nor allocated; where the recipe pretrains, or this machine has no
    file of the weights, none is read, and they are to come from the server. `scratch`: where codecs that remember on
    disk keep a temporary folder.
    """
    algorithm, codecs, _ = check(config)
    device = device_of(config)
    read = config.model.pretrain is None and has_weights(config.model)
    held = held_by(config, algorithm, seat.client, read=read)
    loaded = load(config, Given(), site=seat.classes, held=held)
    train = loaded.task.train
    if seat.own_rows:
        source = site_source(config, train, seat.client, device)
    else:
        source = client_sources(config, train, device)[seat.client]
    about = fingerprint(loaded.whole, loaded.task, [source])
    ground = lay(config, algorithm, loaded, device, seat.client)
    links = make_links(ground, codecs, {None: ground.form}, scratch)
    clients = Clients(ground, links, {seat.client: source}, make_locals(ground), Meters())
    return BuiltClient(clients.side(seat.client), about)
