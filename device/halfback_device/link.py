"""The device's end of its link: encode → pack on the way up, unpack → decode on the way down.

A link's name is its field's role and direction: `activations_up`, `gradient_down`, with a head on the device also
`activations_down`, `gradient_up`, and where blocks have exact gradients `slopes_up`, `slopes_down`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from halfback_device.codecs import Chosen, make_receiver, make_sender
from halfback_device.codecs.private import Releases
from halfback_device.codecs.protocol import Parts, Receiver, Samples, Sender, State, finite
from halfback_device.codecs.temporal import TemporalReceiver, TemporalSender, check_unique
from halfback_device.errors import Diverged, PackageError, PeerError
from halfback_device.forms import Bounds, HiddenForm, LinkForm, VectorForm
from halfback_device.messages import FIELDS, Array, Caches, Encoded, Message, Part, of_parts, parts_of
from halfback_device.wire import described, most_bytes, pack, unpack


@dataclass(frozen=True)
class _Batch:
    """The samples that are on their way between the two ends; for texts also the `tokens` of each."""

    ids: tuple[int, ...]
    tokens: tuple[int, ...] | None


@final
class End:
    """The device's side of its link. It remembers which samples the step is about, and what its codecs remember.

    Attributes:
        most_bytes: of the longest message that may come.
    """

    def __init__(
        self,
        codecs: Mapping[str, Chosen],
        forms: Mapping[str, LinkForm],
        bounds: Bounds,
        folder: Path | None = None,
        releases: Releases | None = None,
    ) -> None:
        """`codecs`: the chains by link, as the recipe has them; a link without one carries its values as they are.

        `forms`: what these links carry; `folder`: where a cache on disk may keep its files; `releases`: where
        `private` counts what goes out of samples.

        Raises:
            PackageError: a chain is none that this device can work with.
        """
        self._forms = dict(forms)
        self._senders: dict[str, Sender] = {}
        self._receivers: dict[str, Receiver] = {}
        for link, chosen in codecs.items():
            if not chosen:
                continue
            if link not in forms:
                raise PackageError(f"codecs.{link}: the links of this run are {', '.join(forms)}")
            where, width = f"codecs.{link}", forms[link].width
            if link.endswith("_up"):
                self._senders[link] = make_sender(chosen, width, where, releases)
            else:
                own = None if folder is None else folder / link
                self._receivers[link] = make_receiver(chosen, width, where, own)
        self._most = bounds.receiving(forms, self._receivers)
        self.most_bytes = most_bytes(self._most)
        self._batch: _Batch | None = None
        self._temporal: dict[str, TemporalSender | TemporalReceiver] = {}
        for name, end in sorted(self._ends().items()):
            if isinstance(end, TemporalSender | TemporalReceiver):
                if isinstance(forms[name], VectorForm):
                    raise PackageError(f"codecs.{name}: temporal is not for exact gradients")
                self._temporal[name] = end

    def hello(self) -> Caches | None:
        """What this end remembers, to be said first in a round; None where no link remembers samples."""
        self._batch = None  # of the round before
        if not self._temporal:
            return None
        return Caches(np.array([link.cache.digest() for link in self._temporal.values()], dtype=np.int64), None)

    def meet(self, theirs: Message) -> None:
        """Forgets the samples of every link of which the server remembers something else, and takes the thresholds.

        Raises:
            PeerError: another message came, or not one digest and threshold a link.
        """
        count = len(self._temporal)
        if not isinstance(theirs, Caches):
            raise PeerError("", f"{type(theirs).__name__} came first in a round, Caches is allowed")
        digests, thresholds = theirs.digests, theirs.thresholds
        if digests.shape != (count,) or digests.dtype != np.int64:
            raise PeerError("Caches.digests", described(digests), f"int64 ({count},) is allowed")
        if thresholds is None:
            raise PeerError("Caches.thresholds", "the server says them, and only the server")
        fits = thresholds.shape == (count,) and thresholds.dtype == np.float32
        if not fits or not bool((np.abs(thresholds) <= 1).all()):
            raise PeerError("Caches.thresholds", described(thresholds), f"float32 ({count},) from -1 to 1 is allowed")
        for link, digest, threshold in zip(self._temporal.values(), digests.tolist(), thresholds.tolist(), strict=True):
            if isinstance(link, TemporalSender):
                link.threshold = threshold
            if link.cache.digest() != digest:
                link.cache.clear()

    def send(self, message: Message) -> bytes:
        """The message as bytes.

        Raises:
            Diverged: what a codec would take is not finite.
        """
        return pack(of_parts([self._encoded(part) for part in parts_of(message)]))

    def _encoded(self, message: Part) -> Part:
        changed: dict[str, Any] = {}
        values = {name: getattr(message, name) for name in FIELDS[type(message)]}
        self._turn_to(type(message), values)
        for name, field in FIELDS[type(message)].items():
            link = f"{field.role}_up"
            if field.coded and link in self._senders:
                matrix = self._forms[link].matrix(values[name])
                if not finite(matrix):
                    raise Diverged(f"{type(message).__name__}.{name}", "is not finite", "lower the learning rates")
                try:
                    changed[name] = Encoded(self._senders[link].encode(matrix, self._samples(values, link)))
                except PeerError as error:
                    raise error.within(f"{type(message).__name__}.{name}") from None
        return replace(message, **changed) if changed else message

    def receive(self, data: bytes) -> Message:
        """The message in these bytes.

        Raises:
            PeerError: the bytes are no message, or a field is not what this link's codecs make.
        """
        if len(data) > self.most_bytes:
            raise PeerError("message", f"{len(data)} bytes", f"at most {self.most_bytes} are allowed")
        return of_parts([self._decoded(part) for part in parts_of(unpack(data, self._most))])

    def _decoded(self, message: Part) -> Part:
        kind = type(message)
        values = {name: getattr(message, name) for name in FIELDS[kind]}
        for name, field in FIELDS[kind].items():
            link = f"{field.role}_down"
            receiver = self._receivers.get(link) if field.coded else None
            if isinstance(values[name], Encoded) != (receiver is not None):
                came, allowed = ("encoded values", "a tensor") if receiver is None else ("a tensor", "encoded values")
                raise PeerError(f"{kind.__name__}.{name}", came, f"{allowed} is allowed on this link")
            if receiver is not None:
                try:
                    matrix = receiver.decode(values[name].parts, self._samples(values, link, values[name].parts))
                except PeerError as error:
                    raise error.within(f"{kind.__name__}.{name}") from None
                values[name] = self._forms[link].tensor(matrix)
        return kind(**values)

    def _turn_to(self, kind: type[Part], values: Mapping[str, Any]) -> None:
        """From a message that names its samples on, both ends are about these; the next ones go without their ids."""
        ids, lengths = values.get("sample_ids"), values.get("lengths")
        if ids is None or not (self._senders or self._receivers):
            return
        samples = tuple(ids.tolist())
        if self._temporal:
            try:
                check_unique(samples)
            except PeerError as error:
                raise error.within(f"{kind.__name__}.sample_ids") from None
        self._batch = _Batch(samples, None if lengths is None else tuple(lengths.tolist()))

    def _samples(self, values: Mapping[str, Any], link: str, parts: Parts = ()) -> Samples:
        """Those of the step, without ids where the message is one of several of them.

        A vector is one by itself; so are as many of them as these `parts` have rows for.
        """
        form = self._forms[link]
        if not isinstance(form, HiddenForm):
            rows = parts[0].shape[0] if parts and parts[0].ndim else 0
            return Samples((0,), (max(rows // form.rows, 1) * form.rows,))
        if self._batch is None:
            raise PeerError("sample ids", "none were said in this round yet, they are needed to decode")
        repeated = "sample_ids" in values and values["sample_ids"] is None
        rows = self._batch.tokens or (form.rows,) * len(self._batch.ids)
        return Samples(None, rows, self._batch.ids) if repeated else Samples(self._batch.ids, rows)

    def _ends(self) -> dict[str, Sender | Receiver]:
        return {**self._senders, **self._receivers}

    def state(self) -> State:
        """What the codecs of this end remember, for a checkpoint."""
        arrays: dict[str, Array] = {}
        values: dict[str, Any] = {}
        for name, end in self._ends().items():
            of_end, values[name] = end.state()
            arrays |= {f"{name}.{key}": array for key, array in of_end.items()}
        return arrays, values

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        for name, end in self._ends().items():
            own = {key.removeprefix(f"{name}."): a for key, a in arrays.items() if key.startswith(f"{name}.")}
            end.load_state(own, values[name])
