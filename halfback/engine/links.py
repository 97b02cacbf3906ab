"""What both ends of every client's link are made of: the chains of codecs that a recipe chose, and what they carry."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch
from torch import Tensor

from halfback.codecs import Codec, make_receiver, make_sender
from halfback.codecs.private import Private, private_of
from halfback.codecs.protocol import Receiver, Sender, State
from halfback.codecs.releases import Releases
from halfback.codecs.sparsify import Projection, TopK
from halfback.codecs.temporal import Temporal
from halfback.engine.bounds import Bounds
from halfback.engine.link import End, Side, alone
from halfback.errors import Diverged, PeerError, UserError
from halfback.parties.holdings import LinkForm, VectorForm
from halfback.wire.messages import Encoded

CACHES = "caches-"  # how the temporary folder of what is remembered on disk begins

Forms = Mapping[str, LinkForm]
"""What each link of a client carries, by the link's name."""


@final
class Broadcast:
    """Encodes what all clients of a cohort are sent alike: once, so that the server knows what all of them decode."""

    def __init__(self, form: VectorForm, sender: Sender, receiver: Receiver) -> None:
        """`receiver`: without a memory, as each client has one."""
        self._form, self._sender, self._receiver = form, sender, receiver

    def encode(self, vector: Tensor) -> tuple[Encoded, Tensor]:
        """What is sent of a vector, and what the clients make of it; Diverged where that is not finite."""
        samples = alone(self._form)
        try:
            parts = self._sender.encode(self._form.matrix(vector), samples)
            return Encoded(parts), self._form.tensor(self._receiver.decode(parts, samples))
        except PeerError:  # no peer's fault: what feedback has added up is too large
            raise Diverged("agreed exact gradients", "are not finite", "lower bottom.lr or top.lr") from None

    def tensors(self) -> list[Tensor]:
        """What it remembers for the next one."""
        return self._sender.tensors()

    def state(self) -> State:
        """What it remembers, for a checkpoint."""
        return self._sender.state()

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        self._sender.load_state(tensors, values)


@dataclass(frozen=True)
class Links:
    """The links of a run.

    Attributes:
        codecs: the chain of each link.
        forms: what a client's links carry, by its number; under None those of all clients that have no entry.
        bounds: what their messages may hold.
        longest: tokens of the longest row, for texts.
        device: where the tensors of received messages are put.
        scratch: where what is remembered on disk gets a temporary folder; None for the system's place.
        releases: where `private` counts what the clients of this process send of their samples.
    """

    codecs: Mapping[str, tuple[Codec, ...]]
    forms: Mapping[int | None, Forms]
    bounds: Bounds
    longest: int
    device: torch.device
    scratch: Path | None
    releases: Releases = field(default_factory=Releases)

    def check(self) -> None:
        """Refuses, before anything is trained, a chain that can't work on its link.

        Raises:
            UserError: names the link, and what is allowed.
        """
        for forms in [dict(kind) for kind in dict.fromkeys(tuple(each.items()) for each in self.forms.values())]:
            for link, chain in self.codecs.items():
                self._check(link, chain, forms)
            for side in ("client", "server"):
                self._end(side, -1, forms)

    @property
    def private(self) -> Private | None:
        """What adds noise to activations; None where nothing does."""
        return private_of(self.codecs.get("activations_up", ()))

    def near(self, client: int) -> End:
        """The client's end of its link."""
        return self._end("client", client, self._forms(client))

    def far(self, client: int) -> End:
        """The server's end of a client's link."""
        return self._end("server", client, self._forms(client))

    def broadcast(self) -> Broadcast | None:
        """What encodes the agreed exact gradients; None where they are sent as they are."""
        link = "slopes_down"
        form, chain = self.forms[None].get(link), self.codecs.get(link)
        if chain is None or not isinstance(form, VectorForm):
            return None
        how: dict[str, Any] = {"width": form.width, "dtype": form.dtype, "where": f"codecs.{link}"}
        return Broadcast(form, make_sender(chain, **how), make_receiver(chain, **how, folder=None))

    def _forms(self, client: int) -> Forms:
        return self.forms.get(client) or self.forms[None]

    def _end(self, side: Side, client: int, forms: Forms) -> End:
        senders: dict[str, Sender] = {}
        receivers: dict[str, Receiver] = {}
        for link, chain in self.codecs.items():
            form, where = forms[link], f"codecs.{link}"
            if link == "slopes_down" and side == "server":
                continue  # encoded already, by what `broadcast` makes
            if link.endswith("_up") == (side == "client"):
                how: dict[str, Any] = {"width": form.width, "dtype": form.dtype, "where": where}
                senders[link] = make_sender(chain, **how, releases=self.releases, client=client)
            else:
                own = Path(self._folder.name) / f"{client}-{link}" if self._folder is not None else None
                receivers[link] = make_receiver(chain, width=form.width, dtype=form.dtype, where=where, folder=own)
        most = self.bounds.receiving("down" if side == "client" else "up", forms, receivers)
        return End(side, self.device, forms=forms, senders=senders, receivers=receivers, most=most)

    @cached_property
    def _folder(self) -> "TemporaryDirectory[str] | None":
        codecs = (codec for chain in self.codecs.values() for codec in chain)
        on_disk = any(isinstance(codec, Temporal) and codec.where == "disk" for codec in codecs)
        return TemporaryDirectory(prefix=CACHES, dir=self.scratch) if on_disk else None

    def _check(self, link: str, chain: tuple[Codec, ...], forms: Forms) -> None:
        form = forms[link]
        if isinstance(form, VectorForm):
            if barred := [
                type(each).__name__.lower() for each in chain if isinstance(each, Temporal | TopK | Projection)
            ]:
                raise UserError(
                    f"codecs.{link}: {barred[0]}: cast, int8, int4 and sign are allowed for exact gradients"
                )
        elif isinstance(chain[0], Temporal):
            try:
                tokens = self.longest if form.has_texts else form.rows
                chain[0].check_batch(self.bounds.rows * tokens, form.width)
            except UserError as error:
                raise UserError(f"codecs.{link}: {error}") from None
