"""The device's end of a link in conversation with the reference's server."""

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import given, given_message, links, taken_message
from vectors import equal

from halfback_device.errors import Diverged, PackageError, PeerError
from halfback_device.forms import Bounds, HiddenForm, LinkForm, VectorForm, bounds_of
from halfback_device.link import End
from halfback_device.messages import (
    Activations,
    Array,
    Both,
    Caches,
    CutGradient,
    Encoded,
    Exact,
    HeadGradient,
    Join,
    Losses,
    Message,
    MiddleActivations,
    Slopes,
)
from halfback_device.replay import Replica, RowForm
from halfback_device.seeds import Directions, seeds_under
from halfback_device.update import UpdateRule
from halfback_device.wire import Most, pack, unpack

TEXTS, IMAGES = HiddenForm((6, 8), True), HiddenForm((3, 2, 4), False)
LINKS = ("activations_up", "gradient_down", "activations_down", "gradient_up")
ROWS = 4
BOUNDS = Bounds(rows=ROWS, steps=9, slopes=100, exact=600, state=7200, weights=Most(4096, 9))


class Talk:
    """Both ends, and what goes from one to the other."""

    def __init__(self, codecs: dict[str, list[Any]], form: LinkForm = TEXTS, folder: Path | None = None) -> None:
        carried = (
            dict.fromkeys(LINKS, form) if isinstance(form, HiddenForm) else {"slopes_up": form, "slopes_down": form}
        )
        self.near = End(codecs, carried, BOUNDS, folder)
        self.links = links(codecs, carried, ROWS)
        self.far = self.links.far(0)

    def open(self, threshold: float) -> None:
        said = self.near.hello()
        told = self.far.hello(dict.fromkeys(LINKS, threshold))
        assert (said is None) == (told is None)
        if said is not None and told is not None:
            self.far.meet(self.far.receive(self.near.send(said)))
            self.near.meet(self.near.receive(self.far.send(told).data))

    def up(self, message: Message) -> Message:
        return taken_message(self.far.receive(self.near.send(message)))

    def down(self, message: Message) -> Message:
        return self.near.receive(self.far.send(given_message(message)).data)


def batch(dice: random.Random, now: dict[int, Array], form: HiddenForm) -> Activations:
    """Some samples, each as it was or changed a little or much."""
    ids = dice.sample(list(now), dice.randint(1, ROWS))
    for sample in ids:
        noise = np.random.default_rng(dice.randrange(1 << 30)).standard_normal(now[sample].shape, dtype=np.float32)
        now[sample] = now[sample] + np.float32(dice.choice((0.0, 0.0, 0.05, 2.0))) * noise
    whole = lambda numbers: np.array(numbers, dtype=np.int32)  # noqa: E731
    if not form.has_texts:
        return Activations(np.stack([now[sample] for sample in ids]), None, whole([0] * len(ids)), whole(ids))
    hidden = np.concatenate([now[sample] for sample in ids])
    return Activations(hidden, whole([len(now[sample]) for sample in ids]), whole([0] * len(ids)), whole(ids))


SENT_AS = {
    "plain": [],
    "int8": ["int8"],
    "temporal": ["temporal"],
    "temporal-int8": [{"name": "temporal", "cache": "int8", "projection": 4}, "int8"],
    "temporal-capped": [{"name": "temporal", "cache": "float32", "cap_mb": 4e-4}, "cast"],
    "temporal-disk": [{"name": "temporal", "where": "disk"}],
}


@pytest.mark.parametrize("form", [TEXTS, IMAGES], ids=["texts", "images"])
@pytest.mark.parametrize("way", SENT_AS)
@pytest.mark.parametrize("u_shape", [False, True])
def test_a_long_conversation(form: HiddenForm, way: str, u_shape: bool, tmp_path: Path) -> None:
    used = LINKS if u_shape else LINKS[:2]
    codecs = {} if way == "plain" else dict.fromkeys(used, SENT_AS[way])
    talk, dice = Talk(codecs, form, tmp_path), random.Random(len(way) + u_shape)
    now = {
        sample: np.random.default_rng(sample).standard_normal(
            (1 + sample % 6, 8) if form.has_texts else form.shape, dtype=np.float32
        )
        for sample in range(10)
    }
    exact = way in ("plain", "temporal-disk")
    for round in range(6):
        talk.open(dice.choice((0.9, 0.99)))
        if way.startswith("temporal"):
            mine, theirs = talk.near.hello(), talk.far.hello(dict.fromkeys(LINKS, 0.9))
            assert mine is not None
            assert theirs is not None
            assert mine.digests.tolist() == theirs.digests.tolist()
            talk.open(0.9)
        for step in range(3):
            said = batch(dice, now, form)
            came = talk.up(said)
            assert isinstance(came, Activations)
            assert equal(came.lengths, said.lengths)
            # As near as reuse above a cosine of 0.9 and eight bits allow; to the bit where all is sent as it is.
            limit = 0 if exact and way == "plain" else 0.6
            apart = np.linalg.norm(came.hidden - said.hidden) / np.linalg.norm(said.hidden)
            assert apart <= limit
            if u_shape:
                middle = talk.down(MiddleActivations(said.hidden, (np.ones((2, 2), dtype=np.float32),)))
                assert isinstance(middle, MiddleActivations)
                assert middle.hidden.shape == said.hidden.shape
                loss = np.ones(1, dtype=np.float32)
                talk.up(HeadGradient(said.hidden, loss, ()))
            gradient = talk.down(CutGradient(said.hidden))
            assert isinstance(gradient, CutGradient)
            assert np.linalg.norm(gradient.gradient - said.hidden) / np.linalg.norm(said.hidden) <= limit
            if step == 1:  # a probe of the same batch, which nobody remembers
                again = talk.up(Activations(said.hidden, None, None, None))
                assert isinstance(again, Activations)
                assert again.hidden.shape == said.hidden.shape
        if round == 2:  # a device that goes back to what it has written down
            arrays, values = talk.near.state()
            talk.near.load_state({name: kept.copy() for name, kept in arrays.items()}, values)


def test_what_a_device_has_forgotten_is_sent_again() -> None:
    codecs = {"activations_up": ["temporal"], "gradient_down": ["temporal"]}
    talk = Talk(codecs)
    hidden = np.ones((3, 8), dtype=np.float32)
    said = Activations(hidden, *(np.array(each, dtype=np.int32) for each in ([3], [0], [7])))
    talk.open(0.5)
    talk.up(said)
    talk.down(CutGradient(hidden))
    talk.near = End(codecs, dict.fromkeys(LINKS, TEXTS), BOUNDS)  # a new process without a state
    talk.open(0.5)
    again = talk.near.send(said)
    message = unpack(again)
    assert isinstance(message, Activations)
    assert isinstance(message.hidden, Encoded)
    assert not message.hidden.parts[1].any()
    assert equal(taken_message(talk.far.receive(again)), said)
    came = talk.down(CutGradient(hidden))
    assert isinstance(came, CutGradient)
    assert equal(came.gradient, hidden)


@pytest.mark.parametrize("chain", [[], ["int8"], ["sign"], ["cast", "int4"], [{"name": "sign", "feedback": False}]])
def test_exact_gradients_up_and_down(chain: list[Any]) -> None:
    form = VectorForm(600)
    codecs = {"slopes_up": chain, "slopes_down": chain} if chain else {}
    carried: dict[str, LinkForm] = {"slopes_up": form, "slopes_down": form, "activations_up": TEXTS}
    near, there = End(codecs, carried, BOUNDS), links(codecs, carried, ROWS)
    far, broadcast = there.far(0), there.broadcast()
    sums = {"meant": np.zeros(600), "came": np.zeros(600)}
    for step in range(8):
        values = np.random.default_rng(step).standard_normal(600, dtype=np.float32)
        slopes = Slopes(step, np.ones(2, dtype=np.float32))
        came = taken_message(far.receive(near.send(Both(slopes, Exact(values)))))
        assert isinstance(came, Both)
        assert isinstance(came.second, Exact)
        assert equal(came.first, slopes)
        sums["meant"] += values
        sums["came"] += came.second.values
        if broadcast is None:
            heard = near.receive(far.send(given_message(Both(slopes, Exact(values)))).data)
            assert equal(heard, Both(slopes, Exact(values)))
            continue
        encoded, kept = broadcast.encode(given(values))
        answer = given_message(Both(slopes, Exact(values)))
        heard = near.receive(far.send(type(answer)(answer.first, type(answer.second)(encoded))).data)
        assert isinstance(heard, Both)
        assert equal(heard.second, Exact(kept.numpy()))  # to the bit what the server goes on with
    if chain == ["sign"]:  # what feedback keeps back is bounded, so it doesn't grow with the steps
        assert np.abs(sums["meant"] - sums["came"]).mean() < 1.5


def caches(*, digests: Any = (1, 2), thresholds: Any = (0.5, 0.5)) -> Message:
    given_thresholds = None if thresholds is None else np.array(thresholds, dtype=np.float32)
    return Caches(np.array(digests, dtype=np.int64), given_thresholds)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Join(3), "Join came first in a round"),
        (caches(digests=(1,)), r"Caches.digests: int64 \(1,\) came"),
        (caches(thresholds=None), "the server says them"),
        (caches(thresholds=(0.5, 2.0)), "from -1 to 1"),
        (caches(thresholds=(0.5, float("nan"))), "from -1 to 1"),
    ],
)
def test_a_greeting_that_is_none(message: Message, says: str) -> None:
    near = Talk({"activations_up": ["temporal"], "gradient_down": ["temporal"]}).near
    with pytest.raises(PeerError, match=says):
        near.meet(message)


@pytest.mark.parametrize(
    ("codecs", "answer", "says"),
    [
        ({}, CutGradient(Encoded(())), "encoded values came, a tensor is allowed"),  # type: ignore[arg-type]
        ({"gradient_down": ["int8"]}, CutGradient(np.zeros((3, 8), dtype=np.float32)), "a tensor came, encoded values"),
        ({}, CutGradient(np.zeros((25, 8), dtype=np.float32)), "CutGradient.gradient: .* at most 768 bytes"),
        ({}, Losses(np.zeros(2, dtype=np.float32)), "at most 4 bytes"),
        ({"gradient_down": ["int8"]}, CutGradient(Encoded((np.zeros((3, 8), np.int8),))), "1 tensors came, 2"),  # type: ignore[arg-type]
        (
            {"gradient_down": ["int8"]},
            CutGradient(Encoded((np.zeros((3, 8), np.int8), np.full((3, 1), np.inf, np.float32)))),  # type: ignore[arg-type]
            "CutGradient.gradient: codec: scale: a negative or infinite value",
        ),
        (
            {"gradient_down": ["cast"]},
            CutGradient(Encoded((np.full((3, 8), 0x7F80, np.uint16),))),  # type: ignore[arg-type]
            "not finite",
        ),
        (
            {"gradient_down": ["temporal"]},
            CutGradient(
                Encoded((np.ones(1, np.float32), np.ones(1, np.bool_), np.zeros((0, 8), np.float32)))  # type: ignore[arg-type]
            ),
            "skip map: sample 7 came, but it was never sent",
        ),
    ],
)
def test_an_answer_that_is_wrong(codecs: dict[str, list[Any]], answer: Message, says: str) -> None:
    near = Talk(codecs).near
    near.send(Activations(np.ones((3, 8), np.float32), *(np.array([n], dtype=np.int32) for n in (3, 0, 7))))
    with pytest.raises(PeerError, match=says):
        near.receive(pack(answer))


def test_an_answer_that_is_too_long() -> None:
    near = Talk({}).near
    with pytest.raises(PeerError) as caught:
        near.receive(bytes(near.most_bytes + 1))
    assert caught.value.allowed == f"at most {near.most_bytes} are allowed"


def test_values_that_are_not_finite_are_not_encoded() -> None:
    near = Talk({"activations_up": ["int8"]}).near
    with pytest.raises(Diverged, match=r"Activations\.hidden is not finite"):
        near.send(Activations(np.full((3, 8), np.nan, np.float32), *(np.array([n], np.int32) for n in (3, 0, 7))))


@pytest.mark.parametrize(
    ("codecs", "says"),
    [
        (
            {"activations_up": ["topk"]},
            "codecs.activations_up: codec 'topk': a device has cast, int8, int4, sign, priv",
        ),
        ({"activations_up": [{"name": "int8", "bits": 3}]}, "codecs.activations_up: codec int8"),
        ({"activations_up": [{"name": "cast", "dtype": "float8"}]}, "codecs.activations_up: codec cast"),
        ({"activations_up": ["int8", "cast"]}, "cast takes floats; what comes before it gives int8"),
        ({"activations_up": ["cast", "cast"]}, "half precision already"),
        ({"activations_up": ["cast", "temporal"]}, "temporal must be the first"),
        ({"activations_up": [{"name": "temporal", "cap_mb": -1}]}, "cap_mb=-1 is not allowed"),
        ({"slopes_up": ["temporal"]}, "temporal is not for exact gradients"),
        ({"losses_down": ["cast"]}, "the links of this run are"),
    ],
)
def test_a_chain_that_a_device_can_not_work_with(codecs: dict[str, list[Any]], says: str) -> None:
    with pytest.raises(PackageError, match=says):
        End(codecs, dict.fromkeys(LINKS, TEXTS) | {"slopes_up": VectorForm(10)}, BOUNDS)


def test_bounds_follow_from_what_is_trained() -> None:
    theta = {name: np.zeros(size, dtype=np.float32) for name, size in {"a": 10, "b": 20, "c": 30}.items()}
    form = RowForm([["a"], ["gone"]], ["b", "c"])
    replica = Replica(theta, UpdateRule("adamw"), Directions(seeds_under(1)), form=form)
    bounds = bounds_of(replica, {"head": np.zeros(7, dtype=np.float32)}, directions=3, rows=4, steps=5)
    assert (bounds.slopes, bounds.exact, bounds.state) == (5 * 3 * 2, 50, 600)
    assert bounds.weights == Most(3 * 50 * 4, 6)  # the exact parameters and two moments of each
    carried: dict[str, LinkForm] = {"gradient_down": IMAGES, "slopes_down": VectorForm(50)}
    most = bounds.receiving(carried, {})
    assert most["slopes"] == Most(400)  # those of two steps, which are fewer bytes than the state
    assert most["gradient"] == Most(4 * 4 * 24, shape=(4, 3, 2, 4))
    assert "lengths" not in most


@pytest.mark.parametrize("way", SENT_AS)
def test_mutated_answers_are_answers_or_peer_errors(way: str, tmp_path: Path) -> None:
    dice = random.Random(way)
    chain: list[Any] = SENT_AS[way]
    codecs = {"gradient_down": chain, "slopes_down": ["sign"]} if chain else {"slopes_down": ["sign"]}
    carried: dict[str, LinkForm] = dict.fromkeys(LINKS, TEXTS) | {"slopes_down": VectorForm(600)}
    there = links(codecs, carried, ROWS)
    far, broadcast = there.far(0), there.broadcast()
    assert broadcast is not None
    said = Activations(np.ones((9, 8), np.float32), *(np.array(n, np.int32) for n in ([3, 6], [0, 1], [7, 4])))
    plain = End({}, carried, BOUNDS)
    far.receive(plain.send(said))
    slopes = given_message(Both(Slopes(3, np.ones(2, np.float32)), Exact(np.ones(600, np.float32))))
    exact = type(slopes)(slopes.first, type(slopes.second)(broadcast.encode(given(np.ones(600, np.float32)))[0]))
    sent = [far.send(given_message(CutGradient(said.hidden))).data, far.send(exact).data]
    came = 0
    for number in range(400):
        near = End(codecs, carried, BOUNDS, tmp_path / str(number))
        near.send(said)
        data = bytearray(sent[number % 2])
        for _ in range(dice.randint(0, 2)):
            place = dice.randrange(len(data))
            data[place : place + dice.randint(0, 2)] = dice.randbytes(dice.randint(0, 2))
        with contextlib.suppress(PeerError):
            came += near.receive(bytes(data)) is not None
    assert came > 100  # of which a third is not changed
