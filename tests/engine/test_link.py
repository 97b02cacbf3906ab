"""A client's link: what codecs are given of a message, the greeting that finds a lost memory, and hostile messages."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from halfback.codecs import parse
from halfback.codecs.temporal import TemporalSender
from halfback.engine.bounds import Bounds
from halfback.engine.link import End, blamed
from halfback.engine.links import Links
from halfback.errors import Diverged, PeerError
from halfback.parties.holdings import HiddenForm
from halfback.wire.messages import (
    Activations,
    Caches,
    CutGradient,
    Encoded,
    HeadGradient,
    Message,
    MiddleActivations,
    Nothing,
)
from halfback.wire.packing import Direction, Ledger, Most, pack, unpack

LONGEST, WIDTH = 6, 8
TEXTS = HiddenForm((LONGEST, WIDTH), True, torch.float32)
IMAGES = HiddenForm((3, 2, 4), False, torch.float32)
BOTH = {"activations_up": ["temporal"], "gradient_down": ["temporal", "int8"]}
FOUR = BOTH | {"activations_down": ["temporal"], "gradient_up": ["temporal"]}
CLIENT = 3
Spoil = Callable[[Direction, Message], Message]


class Link:
    """Both ends of each client's link, and what is counted between them."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self.ledger = Ledger()
        self.ends: dict[int, tuple[End, End]] = {}

    def of(self, client: int) -> tuple[End, End]:
        if client not in self.ends:
            self.ends[client] = self._links.near(client), self._links.far(client)
        return self.ends[client]

    def carry(self, client: int, direction: Direction, message: Message) -> Message:
        near, far = self.of(client)
        sender, receiver = (near, far) if direction == "up" else (far, near)
        with blamed(client if direction == "up" else "server"):
            packed = sender.send(message)
            self.ledger.add(direction, message, packed)
            return receiver.receive(packed.data)

    def open(self, client: int, thresholds: dict[str, float], spoil: Spoil = lambda _, message: message) -> None:
        """First in a round; `spoil` changes what one of them says."""
        near, far = self.of(client)
        said = near.hello()
        if said is not None:
            answer = far.hello(thresholds)
            assert answer is not None
            heard = self.carry(client, "up", spoil("up", said))
            with blamed(client):
                far.meet(heard)
            told = self.carry(client, "down", spoil("down", answer))
            with blamed("server"):
                near.meet(told)


def link(codecs: dict[str, list[Any]], form: HiddenForm = TEXTS) -> Link:
    forms = dict.fromkeys(("activations_up", "gradient_down", "activations_down", "gradient_up"), form)
    parsed = {name: parse(chosen, f"codecs.{name}") for name, chosen in codecs.items()}
    bounds = Bounds(
        rows=4,
        steps=1,
        directions=1,
        slopes={"up": 1, "down": 1},
        exact=0,
        kept=lambda row: 0,
        weights={"up": Most(64), "down": Most(64)},
    )
    links = Links(parsed, {None: forms}, bounds, LONGEST, torch.device("cpu"), None)
    links.check()
    return Link(links)


def texts(ids: list[int], *, seed: int = 0, shift: float = 0.0) -> Activations:
    """Sample `i` has 1 + i mod 6 tokens and values of its own."""
    tokens = [1 + sample % LONGEST for sample in ids]
    rows = [
        torch.randn(LONGEST, WIDTH, generator=_generator(seed, sample))[:length]
        for sample, length in zip(ids, tokens, strict=True)
    ]
    lengths, labels = torch.tensor(tokens).int(), torch.zeros(len(ids)).int()
    return Activations(torch.cat(rows) + shift, lengths, labels, torch.tensor(ids).int())


def images(ids: list[int], *, seed: int = 0) -> Activations:
    hidden = torch.stack([torch.randn(3, 2, 4, generator=_generator(seed, sample)) for sample in ids])
    return Activations(hidden, None, torch.zeros(len(ids)).int(), torch.tensor(ids).int())


def _generator(seed: int, sample: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + sample)


def up(carrier: Link, message: Activations, client: int = CLIENT) -> Tensor:
    received = carrier.carry(client, "up", message)
    assert isinstance(received, Activations)
    return received.hidden


def down(carrier: Link, gradient: Tensor, client: int = CLIENT) -> Tensor:
    received = carrier.carry(client, "down", CutGradient(gradient))
    assert isinstance(received, CutGradient)
    return received.gradient


def open_(carrier: Link, threshold: float = 0.9) -> None:
    carrier.open(CLIENT, dict.fromkeys(FOUR, threshold))


def test_the_bytes_of_texts_are_those_of_their_tokens() -> None:
    carrier, message = link({"activations_up": ["temporal"], "gradient_down": ["int8"]}), texts([1, 4, 2])
    open_(carrier)
    assert torch.equal(up(carrier, message), message.hidden)
    came = down(carrier, message.hidden)
    assert (came - message.hidden).abs().max() <= message.hidden.abs().max() / 254 + 1e-6
    tokens = len(message.hidden)
    kinds = carrier.ledger.bytes_by_kind
    assert kinds["down"]["CutGradient"]["gradient"] == tokens * (WIDTH + 4)
    # bfloat16 is what is remembered; the first time the values themselves are sent: 3 similarities, 3 bits of the map.
    assert kinds["up"]["Activations"]["activations"] == tokens * WIDTH * 4 + 3 * (4 + 1)
    assert kinds["up"]["Activations"]["lengths"] == 3 * 4


@pytest.mark.parametrize("turned", [False, True])
def test_an_image_is_a_row_a_channel(turned: bool) -> None:
    carrier, message = link({"activations_up": [{"name": "topk", "ratio": 1 / 8}]}, IMAGES), images([5, 6])
    if turned:  # as some convolutions leave it
        message = replace(message, hidden=message.hidden.to(memory_format=torch.channels_last))
    came = up(carrier, message).flatten(2)
    largest = message.hidden.flatten(2).abs().amax(dim=2)
    assert torch.equal(came.abs().amax(dim=2), largest)
    assert bool((came.count_nonzero(dim=2) == 1).all())


def test_a_link_without_a_codec_is_as_it_was() -> None:
    plain, one_way = link({}), link({"gradient_down": ["int8"]})
    message = texts([1, 2])
    for carrier in (plain, one_way):
        open_(carrier)
        assert torch.equal(up(carrier, message), message.hidden)
    assert plain.ledger.bytes_by_kind == one_way.ledger.bytes_by_kind
    assert "Caches" not in plain.ledger.bytes_by_kind["up"]


def test_the_four_links_of_the_u_shape_each_have_their_own_memory_and_threshold() -> None:
    carrier = link(FOUR)
    carrier.open(CLIENT, {"activations_up": 0.5, "activations_down": 0.6, "gradient_up": 0.7, "gradient_down": 0.8})
    message = replace(texts([1, 2]), labels=None)
    for _ in range(2):
        up(carrier, message)
        carrier.carry(CLIENT, "down", MiddleActivations(2 * message.hidden, (torch.ones(3),)))
        carrier.carry(CLIENT, "up", HeadGradient(3 * message.hidden, torch.ones(1), (torch.ones(3),)))
        down(carrier, 4 * message.hidden)
    near, far = carrier.of(CLIENT)
    thresholds = {
        n: e.threshold for end in (near, far) for n, e in end.senders.items() if isinstance(e, TemporalSender)
    }
    assert thresholds == {
        "activations_up": 0.5,
        "activations_down": pytest.approx(0.6),
        "gradient_up": pytest.approx(0.7),
        "gradient_down": pytest.approx(0.8),
    }
    seen, same = near.take_seen(), far.take_seen()
    assert set(seen) == set(same) == set(FOUR)
    for name, matrices in seen.items():
        assert [one.skipped.tolist() for one in matrices] == [[False] * 2, [True] * 2]
        for one, other in zip(matrices, same[name], strict=True):
            assert torch.equal(one.similarity.nan_to_num(9), other.similarity.nan_to_num(9))
            assert torch.equal(one.skipped, other.skipped)
            assert (one.sent_bytes, one.full_bytes) == (other.sent_bytes, other.full_bytes)
            assert one.full_bytes == matrices[0].sent_bytes > matrices[1].sent_bytes  # of the first, all was sent
    assert all(matrices == [] for matrices in near.take_seen().values())  # taken


def test_the_greeting_is_counted() -> None:
    carrier = link(FOUR)
    open_(carrier)
    # Header, then a tensor field of one dimension: 1 + 2 + 4 and eight bytes a digest, four a threshold; none is 1.
    assert carrier.ledger.total("up") == 4 + (7 + 4 * 8) + 1
    assert carrier.ledger.total("down") == 4 + (7 + 4 * 8) + (7 + 4 * 4)


def lose(carrier: Link, side: int, older: Any) -> None:
    """One end is as it was before, or empty."""
    end = carrier.of(CLIENT)[side]
    if older is not None:
        end.load_state(*older)
    else:
        for link in (*end.senders.values(), *end.receivers.values()):
            link.cache.clear()  # type: ignore[union-attr]


@pytest.mark.parametrize("restored", [False, True], ids=["lost", "older"])
@pytest.mark.parametrize("side", [0, 1], ids=["client", "server"])
def test_a_memory_that_is_lost_or_older_at_one_end_is_found_and_never_stale(side: int, restored: bool) -> None:
    """From the next greeting on everything is as if both ends had been cleared, to the bit and to the byte."""
    broken, cleared = link(BOTH), link(BOTH)
    sequence = [([1, 2], 0.0), ([3, 1], 0.0), ([2, 5], 0.01), ([1, 3, 5], 0.02), ([4, 1], 0.0), ([2, 3], 0.0)]
    older: Any = None
    for number, (ids, shift) in enumerate(sequence * 3):
        if number == 3 and restored:
            older = broken.of(CLIENT)[side].state()
        if number == 10:
            lose(broken, side, older)
            lose(cleared, 0, None)
            lose(cleared, 1, None)
        received = []
        for carrier in (broken, cleared):
            open_(carrier)
            message = texts(ids, shift=shift * number)
            received.append((up(carrier, message), down(carrier, message.hidden)))
        assert all(torch.equal(one, other) for one, other in zip(*received, strict=True)), number
    assert broken.ledger.bytes_by_kind == cleared.ledger.bytes_by_kind
    for name, matrices in broken.of(CLIENT)[1].take_seen().items():
        skipped = [bool(one.skipped.any()) for one in matrices]
        assert any(skipped[3:10]), name  # there was something that could have been stale
        assert not any(skipped[10:12]), name


def test_a_link_that_is_lost_takes_no_other_with_it() -> None:
    carrier, message = link(BOTH), texts([1, 2])
    for _ in range(2):
        open_(carrier)
        up(carrier, message)
        down(carrier, message.hidden)
    near, far = carrier.of(CLIENT)
    near.receivers["gradient_down"].cache.clear()  # type: ignore[union-attr]
    open_(carrier)
    assert len(far.senders["gradient_down"].cache) == 0  # type: ignore[union-attr]
    assert len(near.senders["activations_up"].cache) == 2  # type: ignore[union-attr]


def test_a_message_that_never_arrived_is_found_at_the_next_greeting() -> None:
    """The sender remembers what the receiver has not: without the greeting it would be told to use it."""
    carrier = link(BOTH)
    open_(carrier)
    near, _ = carrier.of(CLIENT)
    near.send(texts([1, 2]))
    with pytest.raises(
        PeerError, match=r"client 3: Activations.hidden: codec: skip map: sample 1 came, but it was never"
    ):
        up(carrier, texts([1, 2]))
    open_(carrier)
    assert torch.equal(up(carrier, texts([1, 2])), texts([1, 2]).hidden)


def test_a_client_that_was_away_goes_on_with_what_it_remembers() -> None:
    """Others come in between; its memory is its own."""
    carrier, message = link(BOTH), texts([1, 2])
    for client in (CLIENT, 4, 4, 5, CLIENT):
        carrier.open(client, dict.fromkeys(BOTH, 0.9))
        up(carrier, replace(message, hidden=message.hidden + client), client)
    skipped = {
        client: [s.skipped.all().item() for s in far.take_seen()["activations_up"]]
        for client, (_, far) in carrier.ends.items()
    }
    assert skipped == {CLIENT: [False, True], 4: [False, True], 5: [False]}


def test_thresholds_hold_from_the_greeting_on() -> None:
    carrier, message = link(BOTH), texts([1, 2])
    near_copy = replace(message, hidden=message.hidden + 0.3 * texts([1, 2], seed=1).hidden)  # cosines about 0.95
    for threshold, skipped in ((0.5, True), (0.999, False)):
        open_(carrier)
        up(carrier, message)
        open_(carrier, threshold)
        up(carrier, near_copy)
        assert carrier.of(CLIENT)[1].take_seen()["activations_up"][-1].skipped.all().item() is skipped


GREETINGS: dict[str, tuple[Callable[[Caches], Any], str]] = {
    "another-message": (lambda m: Nothing(), "Nothing came first in a round, Caches is allowed"),
    "too-few": (
        lambda m: replace(m, digests=m.digests[1:]),
        r"Caches.digests: torch.int64 \(1,\) came, torch.int64 \(2,\)",
    ),
    "a-matrix": (lambda m: replace(m, digests=m.digests.unsqueeze(0)), r"Caches.digests: torch.int64 \(1, 2\) came"),
    "dtype": (lambda m: replace(m, digests=m.digests.int()), "Caches.digests: torch.int32"),
}
THRESHOLDS: dict[str, Tensor | None] = {
    "above": torch.tensor([0.5, 1.001]),
    "below": torch.tensor([-1.001, 0.5]),
    "nan": torch.tensor([0.5, torch.nan]),
    "infinite": torch.tensor([torch.inf, 0.5]),
    "too-many": torch.ones(3),
    "float64": torch.ones(2).double(),
}


def greet(carrier: Link, direction: str, change: Callable[[Any], Any]) -> None:
    """A greeting in which one side says something else."""
    carrier.open(
        CLIENT, dict.fromkeys(FOUR, 0.9), lambda way, message: change(message) if way == direction else message
    )


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("what", GREETINGS)
def test_a_hostile_greeting(direction: str, what: str) -> None:
    change, says = GREETINGS[what]
    with pytest.raises(PeerError, match=says) as refused:
        greet(link(BOTH), direction, change)
    assert str(refused.value).startswith("client 3: " if direction == "up" else "server: ")


@pytest.mark.parametrize("what", THRESHOLDS)
def test_hostile_thresholds(what: str) -> None:
    carrier = link(BOTH)
    with pytest.raises(PeerError, match=r"server: Caches.thresholds: .* torch.float32 \(2,\) from -1 to 1 is allowed"):
        greet(carrier, "down", lambda m: replace(m, thresholds=THRESHOLDS[what]))
    sender = carrier.of(CLIENT)[0].senders["activations_up"]
    assert isinstance(sender, TemporalSender)
    assert sender.threshold == 1.0  # as before: nothing of it was taken


@pytest.mark.parametrize(("direction", "who"), [("up", "client 3"), ("down", "server")])
def test_thresholds_are_the_servers_to_say(direction: str, who: str) -> None:
    """A client that says some, a server that says none."""
    said = torch.ones(2) if direction == "up" else None
    with pytest.raises(PeerError, match=f"{who}: Caches.thresholds: the server says them, and only the server"):
        greet(link(BOTH), direction, lambda m: replace(m, thresholds=said))


def heard(end: End, message: Any) -> Any:
    """What an end makes of bytes that no honest end would send."""
    return end.receive(pack(message).data)


def honest(carrier: Link) -> Activations:
    """An honest message as it is on the wire: encoded by a client that starts now."""
    message = unpack(link(BOTH).of(0)[0].send(texts([1, 2, 3])).data)
    assert isinstance(message, Activations)
    return message


MESSAGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "plain": (lambda m: replace(m, hidden=texts([1, 2, 3]).hidden), "a tensor came, encoded values is allowed"),
    "no-parts": (lambda m: replace(m, hidden=Encoded(())), "Activations.hidden: codec: 0 tensors came, 3 are allowed"),
    "ids-twice": (
        lambda m: replace(m, sample_ids=torch.tensor([1, 2, 1]).int()),
        "Activations.sample_ids: codec: sample id 1 came twice in one batch",
    ),
    "ids-none": (lambda m: replace(m, sample_ids=None), "none came in this round yet"),
    "ids-floats": (
        lambda m: replace(m, sample_ids=m.sample_ids.float()),
        r"Activations.sample_ids: torch.float32 \(3,\) came, integers \(B,\) are allowed",
    ),
    "ids-bools": (lambda m: replace(m, sample_ids=m.sample_ids == 1), "Activations.sample_ids: torch.bool"),
    "ids-matrix": (lambda m: replace(m, sample_ids=m.sample_ids.unsqueeze(0)), r"Activations.sample_ids: .*\(1, 3\)"),
    "ids-empty": (lambda m: replace(m, sample_ids=m.sample_ids[:0]), r"Activations.sample_ids: .*\(0,\) came"),
    "ids-fewer": (
        lambda m: replace(m, sample_ids=m.sample_ids[1:]),
        r"Activations.lengths: torch.int32 \(3,\) came, torch.int32 \(2,\) is allowed",
    ),
    "lengths-none": (
        lambda m: replace(m, lengths=None),
        r"Activations.lengths: none came, torch.int32 \(3,\) is allowed",
    ),
    "lengths-fewer": (lambda m: replace(m, lengths=m.lengths[1:]), r"Activations.lengths: torch.int32 \(2,\) came"),
    "lengths-long": (lambda m: replace(m, lengths=m.lengths + 3), "Activations.lengths: 7 came, 1 to 6 are allowed"),
    "lengths-huge": (lambda m: replace(m, lengths=m.lengths + 2**30), "Activations.lengths: 1073741826 came, 1 to 6"),
    "lengths-negative": (lambda m: replace(m, lengths=-m.lengths), "Activations.lengths: -2 came"),
    "lengths-none-of-a-text": (lambda m: replace(m, lengths=m.lengths - 2), "Activations.lengths: 0 came"),
    "lengths-matrix": (
        lambda m: replace(m, lengths=m.lengths[None]),
        r"Activations.lengths: torch.int32 \(1, 3\) came",
    ),
    "lengths-dtype": (lambda m: replace(m, lengths=m.lengths.to(torch.uint8)), "Activations.lengths: torch.uint8"),
    "lengths-other-tokens": (
        lambda m: replace(m, lengths=m.lengths + 1),
        r"payload: torch.float32 \(9, 8\) came, .*\(12, 8\)",
    ),
    "skip-unknown": (
        lambda m: replace(m, hidden=Encoded((m.hidden.parts[0], m.hidden.parts[1] | True, m.hidden.parts[2][:0]))),
        "Activations.hidden: codec: skip map: sample 1 came, but it was never sent",
    ),
}


@pytest.mark.parametrize("what", MESSAGES)
def test_a_hostile_upload(what: str) -> None:
    """Refused with the message and field; the server goes on with the next honest message."""
    change, says = MESSAGES[what]
    carrier = link(BOTH)
    open_(carrier)
    _, far = carrier.of(CLIENT)
    with pytest.raises(PeerError, match=says) as refused:
        heard(far, change(honest(carrier)))
    assert "\n" not in str(refused.value)
    open_(carrier)
    message = texts([1, 2, 3])
    assert torch.equal(up(carrier, message), message.hidden)


def test_encoded_values_where_none_are_due() -> None:
    carrier = link({"gradient_down": ["int8"]})
    with pytest.raises(PeerError, match=r"Activations.hidden: \d tensors announced, at most 1 are allowed"):
        heard(carrier.of(CLIENT)[1], honest(carrier))


def test_an_upload_that_names_no_samples_is_no_step_of_the_round_before() -> None:
    """With the samples of the last round it would be decoded, and the gradient remembered under their ids."""
    carrier, message = link(BOTH), texts([1, 2])
    open_(carrier)
    up(carrier, message)
    probe = replace(message, lengths=None, labels=None, sample_ids=None)
    assert torch.equal(up(carrier, probe), message.hidden)  # in the same round it may
    open_(carrier)
    with pytest.raises(PeerError, match="sample ids: none came in this round yet"):
        up(carrier, probe)


def test_a_gradient_before_any_batch() -> None:
    with pytest.raises(PeerError, match=r"server: CutGradient.gradient: sample ids: none came in this round yet"):
        down(link(BOTH), torch.zeros(2, 3, WIDTH))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_not_sent(value: float) -> None:
    carrier, message = link(BOTH), texts([1, 2])
    with pytest.raises(Diverged, match="client: hidden states or gradients are not finite"):
        up(carrier, replace(message, hidden=message.hidden + value))
    up(carrier, message)
    with pytest.raises(Diverged, match="server: hidden states or gradients are not finite"):
        down(carrier, message.hidden + value)


def test_the_senders_own_repeated_id_names_its_side_message_and_field() -> None:
    with pytest.raises(PeerError, match=r"client 3: Activations.sample_ids: codec: sample id 2 came twice"):
        up(link(BOTH), texts([2, 1, 2]))


SIZES: dict[str, tuple[HiddenForm, list[Activations], str]] = {
    "fewer-ids": (
        IMAGES,
        [replace(images([1, 2, 3]), sample_ids=torch.tensor([1, 2]).int())],
        r"Activations: hidden states \(3, 3, 2, 4\) came for 2 samples",
    ),
    "an-id-twice": (IMAGES, [images([2, 1, 2])], "Activations.sample_ids: codec: sample id 2 came twice in one batch"),
    "no-ids": (IMAGES, [replace(images([1, 2]), sample_ids=None)], "sample ids: none came in this round yet"),
    "another-batch-without-ids": (
        IMAGES,
        [images([1, 2]), replace(images([1, 2, 3]), sample_ids=None)],
        r"\(3, 3, 2, 4\) came for 2 samples",
    ),
    "other-tokens-without-ids": (
        TEXTS,
        [texts([1, 2]), replace(texts([1, 4]), sample_ids=None)],
        r"\(7, 8\) came for 5 tokens",
    ),
    "a-scalar": (IMAGES, [replace(images([1]), hidden=torch.tensor(1.0))], r"\(\) came for 1 samples"),
}


@pytest.mark.parametrize("what", SIZES)
def test_hidden_states_that_do_not_fit_their_samples(what: str) -> None:
    """Where only the answer has a codec, nothing else counts them: the server would fail when it encodes."""
    form, said, says = SIZES[what]
    far = link({"gradient_down": ["temporal"]}, form).of(CLIENT)[1]
    *before, last = said
    for message in before:
        heard(far, message)
    with pytest.raises(PeerError, match=says):
        heard(far, last)
