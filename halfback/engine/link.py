"""The link between a client and the server: encode → pack → count → unpack → decode, in both directions.

A link's name is its field's role and direction: `activations_up`, `gradient_down`, with a head on the device also
`activations_down`, `gradient_up`, and where blocks have exact gradients `slopes_up`, `slopes_down`. Codecs are chosen
by this name, never by an algorithm.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor

from halfback.codecs.protocol import Parts, Receiver, Samples, Seen, Sender, finite
from halfback.codecs.temporal import TemporalReceiver, TemporalSender, check_unique
from halfback.engine.tensors import under
from halfback.errors import Diverged, Peer, PeerError
from halfback.parties.checks import tokens_of
from halfback.parties.holdings import HiddenForm, LinkForm, VectorForm
from halfback.telemetry.meters import MemoryMeter
from halfback.wire.fields import FIELDS
from halfback.wire.messages import Caches, Encoded, Message, Part, Role, of_parts, parts_of
from halfback.wire.packing import Direction, Most, Packed, most_bytes, pack, unpack

Side = Literal["client", "server"]
_SENDS: dict[Side, Direction] = {"client": "up", "server": "down"}
_RECEIVES: dict[Side, Direction] = {"client": "down", "server": "up"}


@dataclass(frozen=True)
class _Batch:
    """The samples that are on their way between the two ends; for texts also the `tokens` of each."""

    ids: tuple[int, ...]
    tokens: tuple[int, ...] | None


@final
class End:
    """One side of one client's link. It remembers which samples the step is about, and what its codecs remember."""

    def __init__(
        self,
        side: Side,
        device: torch.device,
        *,
        forms: Mapping[str, LinkForm],
        senders: Mapping[str, Sender],
        receivers: Mapping[str, Receiver],
        most: Mapping[Role, Most],
    ) -> None:
        """`senders`, `receivers`: the codecs of this side by the link's name; a field without one is sent as it is.

        `forms`: what these links carry; `most`: what the fields of a message to this side may hold.
        """
        self._side = side
        self._device = device
        self._forms = dict(forms)
        self._most = dict(most)
        self.most_bytes = most_bytes(most)
        self._batch: _Batch | None = None
        self.senders = dict(senders)
        self.receivers = dict(receivers)
        both: list[tuple[str, Any]] = sorted(self._ends())
        self._temporal: dict[str, TemporalSender | TemporalReceiver] = {
            name: end for name, end in both if isinstance(end, TemporalSender | TemporalReceiver)
        }

    def hello(self, thresholds: Mapping[str, float] | None = None) -> Caches | None:
        """What this end remembers, to be said first in a round; None where no link remembers samples.

        `thresholds`: the server's, by link; they hold for its own sending ends from now on.
        """
        self._batch = None  # of the round before
        if not self._temporal:
            return None
        digests = torch.tensor([link.cache.digest() for link in self._temporal.values()], dtype=torch.int64)
        if thresholds is None:
            return Caches(digests, None)
        values = torch.tensor([thresholds[name] for name in self._temporal], dtype=torch.float32)
        self._take(values)
        return Caches(digests, values)

    def meet(self, theirs: Any) -> None:
        """Forgets the samples of every link of which the other end remembers something else, and takes the thresholds.

        Raises:
            PeerError: another message came, or not one digest and threshold a link.
        """
        count = len(self._temporal)
        if not isinstance(theirs, Caches):
            raise PeerError("", f"{type(theirs).__name__} came first in a round, Caches is allowed")
        digests, thresholds = theirs.digests.cpu(), theirs.thresholds
        if digests.shape != (count,) or digests.dtype != torch.int64:
            came = f"{digests.dtype} {tuple(digests.shape)}"
            raise PeerError("Caches.digests", came, f"torch.int64 ({count},) is allowed")
        if (thresholds is None) != (self._side == "server"):
            raise PeerError("Caches.thresholds", "the server says them, and only the server")
        if thresholds is not None:
            fits = thresholds.shape == (count,) and thresholds.dtype == torch.float32
            if not fits or not bool((thresholds.abs() <= 1).all()):
                came = f"{thresholds.dtype} {tuple(thresholds.shape)}"
                raise PeerError("Caches.thresholds", came, f"torch.float32 ({count},) from -1 to 1 is allowed")
            self._take(thresholds.cpu())
        for link, digest in zip(self._temporal.values(), digests.tolist(), strict=True):
            if link.cache.digest() != digest:
                link.cache.clear()

    def _take(self, thresholds: Tensor) -> None:
        for link, threshold in zip(self._temporal.values(), thresholds.tolist(), strict=True):
            if isinstance(link, TemporalSender):
                link.threshold = threshold

    def send(self, message: Message) -> Packed:
        """The message as bytes."""
        return pack(of_parts([self._encoded(part) for part in parts_of(message)]))

    def _encoded(self, message: Part) -> Part:
        changed: dict[str, Any] = {}
        values = {name: getattr(message, name) for name in FIELDS[type(message)]}
        self._turn_to(type(message), values)
        for name, field in FIELDS[type(message)].items():
            link = f"{field.role}_{_SENDS[self._side]}"
            if field.coded and link in self.senders:
                try:
                    matrix, samples = self._to_matrix(values[name], link), self._samples(values, link)
                    changed[name] = Encoded(self.senders[link].encode(matrix, samples))
                except PeerError as error:
                    raise error.within(f"{type(message).__name__}.{name}") from None
        return replace(message, **changed) if changed else message

    def receive(self, data: bytes) -> Message:
        """The message in these bytes, with its tensors on this side's device.

        Raises:
            PeerError: the bytes are no message, or a field is not what this link's codecs make.
        """
        return self.decode(self.unpack(data))

    def unpack(self, data: bytes) -> Message:
        """The message in these bytes as its sender packed it; raises as `receive` does."""
        if len(data) > self.most_bytes:
            raise PeerError("message", f"{len(data)} bytes", f"at most {self.most_bytes} are allowed")
        return unpack(data, self._most)

    def decode(self, message: Message) -> Message:
        """An unpacked message as it was before this link's codecs; raises as `receive` does."""
        return of_parts([self._decoded(part) for part in parts_of(message)])

    def _decoded(self, message: Part) -> Part:
        kind = type(message)
        values = {name: self._placed(getattr(message, name)) for name in FIELDS[kind]}
        self._turn_to(kind, values)
        for name, field in FIELDS[kind].items():
            link = f"{field.role}_{_RECEIVES[self._side]}"
            receiver = self.receivers.get(link) if field.coded else None
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
        by_role = {role: values[name] for name, (role, _) in FIELDS[kind].items()}
        if not (self.senders or self.receivers) or "sample_ids" not in by_role:
            return
        ids, lengths, hidden = (by_role.get(role) for role in ("sample_ids", "lengths", "activations"))
        if ids is not None:
            if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool or not len(ids):
                came = f"{ids.dtype} {tuple(ids.shape)}"
                raise PeerError(f"{kind.__name__}.sample_ids", came, "integers (B,) are allowed")
            samples = tuple(ids.tolist())
            if self._temporal:  # now, when it is known who said it, and not where the answer is encoded
                try:
                    check_unique(samples)
                except PeerError as error:
                    raise error.within(f"{kind.__name__}.sample_ids") from None
            form = next(form for form in self._forms.values() if isinstance(form, HiddenForm))
            tokens = tokens_of(lengths, form.shape[0], samples=len(ids)) if form.has_texts else None
            self._batch = _Batch(samples, tokens)
        batch = self._step()
        rows = len(batch.ids) if batch.tokens is None else sum(batch.tokens)
        # What is encoded is counted by its codec.
        if isinstance(hidden, Tensor) and hidden.shape[:1] != (rows,):
            what = "samples" if batch.tokens is None else "tokens"
            raise PeerError(kind.__name__, f"hidden states {tuple(hidden.shape)} came for {rows} {what}")

    def _samples(self, values: Mapping[str, Any], link: str, parts: Parts = ()) -> Samples:
        """Those of the step, without their ids where the message is one of several of them; or vectors alone."""
        form = self._forms[link]
        if isinstance(form, VectorForm):
            return alone(form, parts)
        batch = self._step()
        repeated = "sample_ids" in values and values["sample_ids"] is None
        rows = batch.tokens or (form.rows,) * len(batch.ids)
        return Samples(None, rows, batch.ids) if repeated else Samples(batch.ids, rows)

    def _step(self) -> _Batch:
        if self._batch is None:
            raise PeerError("sample ids", "none came in this round yet, they are needed to decode")
        return self._batch

    def _to_matrix(self, hidden: Tensor, link: str) -> Tensor:
        matrix = self._forms[link].matrix(hidden.detach())
        if not finite(matrix):
            raise Diverged(f"{self._side}: hidden states or gradients", "are not finite", "lower the learning rates")
        return matrix

    def _placed(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self._device)
        if isinstance(value, tuple):
            return tuple(tensor.to(self._device) for tensor in value)
        return Encoded(tuple(part.to(self._device) for part in value.parts)) if isinstance(value, Encoded) else value

    def tensors(self) -> list[Tensor]:
        """What the codecs of this end remember in memory."""
        return [tensor for _, end in self._ends() for tensor in end.tensors()]

    def _ends(self) -> list[tuple[str, Sender | Receiver]]:
        return [*self.senders.items(), *self.receivers.items()]

    def take_seen(self) -> dict[str, list[Seen]]:
        """What the links that remember samples saw since the last call, by name."""
        seen = {name: link.seen for name, link in self._temporal.items()}
        for link in self._temporal.values():
            link.seen = []
        return seen

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the codecs of this end remember, for a checkpoint."""
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for name, end in self._ends():
            of_end, values[name] = end.state()
            tensors |= {f"{name}.{key}": tensor for key, tensor in of_end.items()}
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        for name, end in self._ends():
            end.load_state(under(f"{name}.", tensors), values[name])


def alone(form: VectorForm, parts: Parts = ()) -> Samples:
    """A vector as what codecs call a sample: the same one in every step; or as many as these `parts` have rows for."""
    rows = parts[0].shape[0] if parts and parts[0].ndim else 0
    return Samples((0,), (max(rows // form.rows, 1) * form.rows,))


@contextmanager
def blamed(sender: Peer) -> Iterator[None]:
    """An error says who sent what is wrong."""
    try:
        yield
    except PeerError as error:
        raise error.of(sender) from None


def charged(meter: MemoryMeter | None) -> AbstractContextManager[None]:
    """What is done inside is the work of the meter's party; None where nothing is measured."""
    return nullcontext() if meter is None else meter.running()


def tensors_of(message: Message) -> list[Tensor]:
    """Every tensor that a message holds."""
    values = [getattr(part, name) for part in parts_of(message) for name in FIELDS[type(part)]]
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return [item for item in flat if isinstance(item, Tensor)]
