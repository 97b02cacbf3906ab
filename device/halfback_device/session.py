"""A client's part of one run where it runs: its model, its θ, its end of the link, and what that costs."""

import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, final

import numpy as np

from halfback_device.batches import Feed, Ragged, Split
from halfback_device.errors import DeviceError, PackageError, PeerError, running_graphs
from halfback_device.facts import TOKENIZER
from halfback_device.forms import HiddenForm, LinkForm, VectorForm, bounds_of
from halfback_device.link import End
from halfback_device.masking.rules import SumRules, is_summed
from halfback_device.messages import Array, Message
from halfback_device.methods import METHODS
from halfback_device.package import Package
from halfback_device.party import Conversation, Party, Round, is_finite
from halfback_device.plan import Plan, plan_of, replica_of
from halfback_device.runtime import Bottom, Head
from halfback_device.seeds import seed_for
from halfback_device.state import State, check_arrays
from halfback_device.tokens import Encoder
from halfback_device.wire import described

Talk = Generator[bytes, bytes, None]
"""A round of one client: the bytes of each message that it sends, and of the answer that it gets."""


@final
class Session:
    """One client of one run.

    Attributes:
        plan: what its recipe asks of it.
        about: digests of what it works on; a state that was left with others is of no use.
        seconds, wire_seconds: spent in the method, and in packing and unpacking.
        peak_bytes: of the whole process, as its operating system counts them, behind rounds that were measured.
        inference_peak_bytes: of the same, behind inference on a round's batches, before anything was trained.
    """

    def __init__(self, package: Package, plan: Plan, split: Split, client: int, folder: Path) -> None:
        """`client`: its number; `folder`: where codecs that remember on disk keep theirs: emptied.

        Raises:
            PackageError: the runtime lacks an operator, graphs can't be run, or a codec is none that a device has.
        """
        self._package, self._split = package, split
        self.plan, self._folder, self._number = plan, folder, client
        if plan.sums is not None:
            _check_keys()
        self.party = Party(
            Bottom(package),
            Head(package) if plan.has_head else None,
            replica_of(plan, package.manifest, package.theta()),
            Feed(split, size=plan.batch_size, seed=seed_for(plan.seed, "order", client)),
            plan.probe,
            exact_blocks=plan.exact_blocks,
            rows_at_once=plan.rows_at_once,
        )
        self._forms = self._forms_of()
        self.end = self._fresh_end()
        self.about = {"package": _digest_of(package.manifest), "rows": split.digest()}
        self.seconds = self.wire_seconds = 0.0
        self.peak_bytes = self.inference_peak_bytes = 0
        self._has_trained = False

    def _rehearsed(self) -> tuple[int, ...]:
        """Runs all graphs on one row; the shape of its activations, behind the dimension of the samples or tokens.

        Raises:
            PackageError: they can't be run as the manifest says.
        """
        party, batch = self.party, self._split.batch(np.zeros(1, dtype=np.int64))
        lengths = batch.inputs.get("lengths")
        rows = 1 if lengths is None else int(lengths[0])
        try:
            with running_graphs():
                hidden, noted = party.noting(batch)
                shape: tuple[int, ...] = hidden.shape[1:]
                if len(hidden) != rows or hidden.dtype != np.float32 or not is_finite(hidden):
                    raise PackageError(
                        f"the package's graphs make {described(hidden)} of one row, or what is not finite"
                    )
                if party.theta.exact:
                    party.exact(noted, np.zeros_like(hidden))
                if (head := party.head) is not None:
                    tensors = [np.zeros(wanted, dtype=np.float32) for wanted in head.shapes.values()]
                    middle = np.zeros((rows, *head.sizes), dtype=np.float32)
                    head.loss(middle, tensors, lengths, batch.labels, batch.scored)
        finally:
            party.passes = 0
        return shape

    def _forms_of(self) -> dict[str, LinkForm]:
        party, shape = self.party, self._rehearsed()
        has_texts = self._package.manifest["model"]["kind"] != "image"
        if has_texts:
            shape = (self._package.manifest["task"]["texts"]["max_length"], *shape)
        first = HiddenForm(shape, has_texts)
        forms: dict[str, LinkForm] = {"activations_up": first, "gradient_down": first}
        if party.head is not None:
            sizes = party.head.sizes
            second = HiddenForm((shape[0], *sizes) if has_texts else sizes, has_texts)
            forms |= {"activations_down": second, "gradient_up": second}
        if party.theta.exact:
            vector = VectorForm(party.theta.width(0))
            forms |= {"slopes_up": vector, "slopes_down": vector}
        return forms

    def _fresh_end(self) -> End:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        plan, head = self.plan, self.party.head
        shapes = {} if head is None else head.shapes
        bounds = bounds_of(
            self.party.theta,
            {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()},
            directions=plan.probe.directions,
            rows=plan.batch_size,
            steps=plan.agreed_rows,
            masks=0 if plan.sums is None else plan.sums.told * plan.sums.most,
        )
        return End(plan.codecs, self._forms, bounds, self._folder)

    def begin(self) -> None:
        """Goes back to where the run began."""
        self.party.theta = replica_of(self.plan, self._package.manifest, self._package.theta())
        self.end = self._fresh_end()

    def converse(self, round: Round, *, measure: bool) -> Talk:
        """Carries the client's side of one round.

        Raises:
            PeerError: an answer is none that this client can take.
            Diverged: the client's numbers, or those that it was sent, are not finite.
        """
        if (greeting := self.end.hello()) is not None:
            theirs = self._heard((yield self._said(greeting)))
            with _of_server():
                self.end.meet(theirs)
        if measure and not self._has_trained:  # the system says the most that there ever was, so before anything else
            self._infer(round)
        self._has_trained = True
        talk: Conversation = METHODS[self.plan.method](self.party, round)
        reply: Message | None = None
        while (message := self._speak(talk, reply)) is not None:
            if self.plan.sums is not None and is_summed(message):
                message = yield from self._masked(message, self.plan.sums)
            said = [self._said(message)]
            del message, reply  # a device has no memory for what it has sent
            heard = yield said.pop()
            reply = self._heard(heard)
            del heard
        if measure:
            self.peak_bytes = peak_bytes()

    def _masked(self, message: Message, rules: SumRules) -> Generator[bytes, bytes, Message]:
        """Says what goes before the last of a masked message, which it returns."""
        from halfback_device.masking.talk import masked_talk

        talk, reply = masked_talk(self._number, len(self.party.feed), message, rules), None
        while True:
            begun = time.perf_counter()
            try:
                with _of_server():
                    said = talk.send(reply)
            except StopIteration as end:
                return cast(Message, end.value)
            finally:
                self.wire_seconds += time.perf_counter() - begun
            reply = self._heard((yield self._said(said)))

    def _said(self, message: Message) -> bytes:
        begun = time.perf_counter()
        try:
            return self.end.send(message)
        finally:
            self.wire_seconds += time.perf_counter() - begun

    def _heard(self, data: bytes) -> Message:
        begun = time.perf_counter()
        try:
            with _of_server():
                return self.end.receive(data)
        finally:
            self.wire_seconds += time.perf_counter() - begun

    def _speak(self, talk: Conversation, reply: Message | None) -> Message | None:
        begun = time.perf_counter()
        try:
            return next(talk) if reply is None else talk.send(reply)
        except StopIteration:
            return None
        finally:
            self.seconds += time.perf_counter() - begun

    def _infer(self, round: Round) -> None:
        party = self.party
        for number in range(party.feed.cursor, party.feed.cursor + round.steps):
            party.forward(party.feed.batch(number))
            party.passes -= 1
        self.inference_peak_bytes = peak_bytes()

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """All that this client needs to go on by itself: arrays, which are not copied, and plain values."""
        arrays, values = self.party.theta.state()
        of_link, link = self.end.state()
        return arrays | {f"link.{name}": array for name, array in of_link.items()}, values | {"link": link}

    def load_state(self, state: State) -> None:
        """Continues from what `state` gave and a disk has kept.

        Raises:
            DeviceError: it is none that this client can go on from; it is then where the run began.
        """
        try:
            check_arrays(state.arrays, self.party.theta.state()[0], free="link.")
            of_link = {n.removeprefix("link."): a for n, a in state.arrays.items() if n.startswith("link.")}
            self.end.load_state(of_link, state.values["link"])
            self.party.theta.load_state(state.arrays, state.values)
            if unknown := of_link.keys() - self.end.state()[0].keys():
                raise DeviceError(f"array link.{min(unknown)!r:.80} is there, and nothing has this name")
        except (
            DeviceError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            self.begin()
            why = str(error) if isinstance(error, DeviceError) else f"{type(error).__name__}: {error!s:.200}"
            raise DeviceError(f"the state can't be gone on from: {why}") from None


def rehearsed(package: Package, folder: Path) -> tuple[int, ...]:
    """Does with a package all that a run begins with, on a row of its own; `folder`: where codecs may keep something.

    Returns:
        The shape of that row's activations.

    Raises:
        PackageError: a device can't work with it: a setting, a codec, the tokenizer or a graph.
    """
    plan, task = plan_of(package.manifest), package.manifest["task"]
    label, images, tokens, unscored = np.zeros(1, np.int64), None, None, None
    if task["inputs"] == "images":
        try:
            images = np.zeros((1, task["images"]["channels"], *task["images"]["size"]), np.float32)
        except (MemoryError, ValueError):
            raise PackageError(f"images of {task['images']['size']} don't fit into memory") from None
    else:
        Encoder(package.folder / TOKENIZER, task["texts"])
        tokens = Ragged([[0, 0]])
        unscored = None if task["objective"] == "classification" else np.ones(1, np.int64)
    split = Split(label, label, tokens, unscored=unscored, images=images)
    session = Session(package, plan, split, 0, folder)
    shape: tuple[int, ...] = session.party.forward(split.batch(label)).shape
    return shape


def _check_keys() -> None:
    """That what secure sums need is installed; PackageError otherwise."""
    try:
        import halfback_device.masking.primitives  # noqa: F401
    except ImportError:
        cure = "pip install 'halfback-device[secure]', or './device[secure]' in a checkout"
        raise PackageError(f"secure.sum=true: cryptography and PyCryptodome are not installed here: {cure}") from None


@contextmanager
def _of_server() -> Iterator[None]:
    """An error says that the server sent what is wrong."""
    try:
        yield
    except PeerError as error:
        raise error.of("server") from None


def peak_bytes() -> int:
    """The most memory that this process has had at once, as its operating system counts it."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):  # not Linux; there a child may be told of its parent's
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
