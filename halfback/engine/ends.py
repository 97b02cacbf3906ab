"""The two ends of every client's link, from the chains that a recipe chose."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from halfback.codecs import Codec, make_receiver, make_sender
from halfback.codecs.protocol import Receiver, Sender
from halfback.codecs.temporal import Temporal
from halfback.engine.bounds import Bounds
from halfback.engine.link import End, HiddenForm, Side
from halfback.errors import UserError

CACHES = "caches-"  # how the temporary folder of what is remembered on disk begins


def ends_of(
    codecs: Mapping[str, tuple[Codec, ...]],
    forms: Mapping[str, HiddenForm],
    *,
    others: Mapping[int, Mapping[str, HiddenForm]],
    bounds: Bounds,
    longest: int,
    device: torch.device,
    scratch: Path | None,
) -> Callable[[int], tuple[End, End]]:
    """Makes the client's and the server's end of a client's link.

    codecs: the chain of each link. forms: what each link carries; others: the same by client, where that differs.
    bounds: what their messages may hold. longest: tokens of the longest row, for texts.
    scratch: where what is remembered on disk gets a temporary folder; None for the system's place.
    Raises UserError for a chain that can't work on its link.
    """
    kinds = [dict(kind) for kind in dict.fromkeys(tuple(each.items()) for each in (forms, *others.values()))]
    for link, chain in codecs.items():
        for kind in kinds:
            _check(link, chain, kind, bounds.rows, longest)
    on_disk = any(isinstance(codec, Temporal) and codec.where == "disk" for chain in codecs.values() for codec in chain)
    folder = TemporaryDirectory(prefix=CACHES, dir=scratch) if on_disk else None

    def end(side: Side, client: int, carried: Mapping[str, HiddenForm]) -> End:
        senders: dict[str, Sender] = {}
        receivers: dict[str, Receiver] = {}
        for link, chain in codecs.items():
            form, where = carried[link], f"codecs.{link}"
            if link.endswith("_up") == (side == "client"):
                senders[link] = make_sender(chain, width=form.width, dtype=form.dtype, where=where)
            else:
                own = Path(folder.name) / f"{client}-{link}" if folder is not None else None
                receivers[link] = make_receiver(chain, width=form.width, dtype=form.dtype, where=where, folder=own)
        most = bounds.receiving("down" if side == "client" else "up", carried, receivers)
        return End(side, device, forms=carried, senders=senders, receivers=receivers, most=most)

    def both(client: int, carried: Mapping[str, HiddenForm]) -> tuple[End, End]:
        return end("client", client, carried), end("server", client, carried)

    for kind in kinds:  # a chain that can't work is refused before anything is trained
        both(-1, kind)
    return lambda client: both(client, others.get(client, forms))


def _check(link: str, chain: tuple[Codec, ...], forms: Mapping[str, HiddenForm], batch_size: int, longest: int) -> None:
    if isinstance(chain[0], Temporal):
        form = forms[link]
        try:
            chain[0].check_batch(batch_size * (longest if form.has_texts else form.shape[0]), form.width)
        except UserError as error:
            raise UserError(f"codecs.{link}: {error}") from None
