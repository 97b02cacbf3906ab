"""Clients of a simulation that run on device packages: what is on a device is here too, from its frames to its disk.

PyTorch has the server alone. Each client is one of `halfback_device`, in this process, with a replica of θ and an end
of a link of its own; it answers the questions that a client on another machine is asked, by the engine that asks these.
So a run goes on from its checkpoint as a deployed one does: with what the clients themselves have written down.
"""

import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from halfback import config as configuration
from halfback.assembly import Built
from halfback.assembly.remote import remote_server
from halfback.config import RunConfig
from halfback.data.batches import ClientData
from halfback.engine.remote.frames import Frame, Longest, Open, frame, read_question
from halfback.engine.remote.presence import Came, Terms
from halfback.engine.remote.server import RemoteServer
from halfback.errors import PeerError, UserError
from halfback.packaging import check_installed

if TYPE_CHECKING:
    from halfback_device.batches import Split
    from halfback_device.client import Device
    from halfback_device.package import Package

FOLDER = "devices"  # of a run: its packages, and what its clients have written down
_TOKEN = "0" * 16  # one run in the folder
_NEVER = 1e9  # seconds: in one process nobody is late


def check(config: RunConfig) -> None:
    """Refuses what can't run on device packages; nothing is asked where clients run on PyTorch.

    Raises:
        UserError: names the setting, or what is to be installed.
    """
    if config.client.runtime == "torch":
        return
    check_installed("client.runtime=device")
    from halfback.packaging.writing import check_recipe

    try:
        check_recipe(config)
    except UserError as error:
        raise UserError(f"client.runtime=device: {error}") from None


def engine(built: Built, out: Path) -> RemoteServer:
    """What carries the rounds of a run in the folder `out` whose clients run on device packages, which are made there.

    Raises:
        UserError: what that needs is not installed, or something of the model can't be exported.
    """
    check(built.config)
    carrier, terms = _Devices(built, out / FOLDER), Terms(_NEVER, None, _NEVER)
    return remote_server(built, configuration.to_tree(built.config), carrier, _TOKEN, terms, lambda _: None)


@final
class _Devices:
    """Carries questions to the devices of this process, each of which is made when it is first asked."""

    def __init__(self, built: Built, folder: Path) -> None:
        """Makes the packages, before anything is trained; those in the folder stay, for states belong to them."""
        self._sources = built.clients.sources
        self._folder = folder
        self._cut_of = built.config.model.cut_of
        self._packages = _packages(built, folder)
        self._made: dict[int, Device] = {}
        self._one_at_a_time = threading.Lock()  # the server asks clients that are new in threads of their own

    def reachable(self) -> set[int]:
        return set(self._sources)

    def is_there(self, client: int) -> bool:
        return client in self._sources

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Came], None, None]:
        with self._one_at_a_time:
            for number, asked in questions.items():
                yield number, self._reply(number, asked, longest)

    def _reply(self, number: int, asked: Frame, longest: Longest) -> Came:
        question = read_question(asked.header)
        if isinstance(question, Open):  # the system counts the whole process, in which the server is too
            asked = frame(question.model_copy(update={"measure": False}), asked.body)
        if number not in self._made:
            self._made[number] = self._device(number)
        header, body = self._made[number].reply(*asked)
        try:
            longest.check(len(header), len(body))
        except PeerError as error:
            return error
        return Frame(header, body)

    def _device(self, number: int) -> "Device":
        from halfback_device.client import Device

        return Device(self._packages[self._cut_of(number)], lambda n: _split(self._sources[n]), self._folder / "states")


def _packages(built: Built, folder: Path) -> dict[int, "Package"]:
    """The packages of all clients, by their cut."""
    from halfback.packaging.holding import held_against_reference
    from halfback.packaging.writing import Source, new_folder, write
    from halfback_device.errors import DeviceError
    from halfback_device.package import Package

    cuts = {built.config.model.cut_of(number): number for number in built.clients.sources}
    found = {}
    for at, number in cuts.items():
        place = folder / f"package-{at}"
        if not place.exists():
            with new_folder(place) as making:
                source = Source(built, built.clients.side(number), number if len(cuts) > 1 else None)
                write(source, making)
                held_against_reference(source, making)
        try:
            found[at] = Package.open(place)
        except DeviceError as error:
            raise UserError(f"package {place}: {error}") from None
    return found


def _split(source: ClientData) -> "Split":
    """A client's rows as a device has them."""
    from halfback_device.batches import Ragged, Split

    held = {name: tensor.numpy() for name, tensor in source.split.contents().items()}

    def lists(name: str) -> Ragged | None:
        if name not in held:
            return None
        counts = held[f"{name}.lengths"]
        ends = counts.cumsum()
        return Ragged(held[name][end - count : end].tolist() for end, count in zip(ends, counts, strict=True))

    return Split(
        held["labels"], source.rows, lists("tokens"), lists("token_types"), held.get("unscored"), held.get("images")
    )
