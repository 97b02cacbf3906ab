"""A device in secure sums: beside the reference's parties, and against whoever says what may not be said."""

import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixed import Kind, adapted, run_of, shared_rows, world

from halfback.errors import CohortLost
from halfback.errors import PeerError as TheirPeerError
from halfback.masking.collector import Collector
from halfback.masking.fixed_point import FixedPoint
from halfback.masking.participant import Participant
from halfback.masking.rules import SumRules as TheirRules
from halfback_device.errors import DeviceError, Diverged, PackageError, PeerError
from halfback_device.forms import Bounds, HiddenForm
from halfback_device.link import End
from halfback_device.masking.rules import KEYS, ROWS, SECRET, SumRules
from halfback_device.masking.talk import Secrets, masked_talk
from halfback_device.messages import Array, Both, Exact, Join, Masking, Message, Slopes
from halfback_device.plan import sums_of
from halfback_device.wire import Most, pack, unpack

PHASES = ("keys", "shares", "masked", "opened")


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("clients", [3, 7, 1000])
@pytest.mark.parametrize("most", [1e-3, 1.0, 1000.0, 2.0**20])
def test_values_become_the_references_whole_numbers(bits: int, clients: int, most: float) -> None:
    mine, theirs = SumRules(3, bits, most, clients, False), FixedPoint(bits, most, clients)
    assert mine.scale == theirs.scale
    dice = np.random.default_rng(bits + clients)
    # To the edge of the range, and what stands in the middle of two steps.
    steps = np.float32(mine.scale) ** -1 * (np.arange(-50, 50, dtype=np.float32) + np.float32(0.5))
    edges = np.array([most, -most, 0.0, -0.0], dtype=np.float32)
    drawn = ((dice.random(500) * 2 - 1) * most).astype(np.float32)
    values = np.clip(np.concatenate([edges, steps, drawn]), -np.float32(most), np.float32(most))
    values = values[np.abs(values.astype(np.float64)) <= most]
    for share in (1.0, 3 / 7, 1e-9):
        assert np.array_equal(mine.encode(values, "v", share), theirs.encode(torch.from_numpy(values), "v", share))


def test_what_is_too_large_or_not_finite_is_an_error_that_has_no_value_in_it() -> None:
    rules = SumRules(3, 64, 8.0, 3, False)
    with pytest.raises(DeviceError) as told:
        rules.encode(np.array([1.0, -8.5], dtype=np.float32), "Slopes")
    assert str(told.value) == "secure.range=8: a value of Slopes is larger; set a larger range"
    for wrong in (np.nan, np.inf):
        with pytest.raises(Diverged, match="Slopes are not finite"):
            rules.encode(np.array([wrong], dtype=np.float32), "Slopes")


def ran(dice: random.Random, likely: float) -> str:
    """A sum of parties of both kinds of which some leave anywhere; it must be right where enough are left."""
    clients = dice.randint(3, 6)
    threshold, bits = dice.randint(clients // 2 + 1, clients), dice.choice((32, 64))
    by_rows, numbers = dice.random() < 0.5, dice.sample(range(1000), clients)
    theirs = TheirRules(threshold, FixedPoint(bits, 8.0, clients), by_rows)
    mine = SumRules(threshold, bits, 8.0, clients, by_rows)
    values = {u: np.array([dice.randrange(1 << bits) for _ in range(5)], f"u{bits // 8}") for u in numbers}
    rows = {u: dice.randint(1, 1000) for u in numbers}
    parties: dict[int, Any] = {
        u: Secrets(u, mine) if place % 2 else Participant(u, theirs) for place, u in enumerate(numbers)
    }
    there, collector = set(numbers), Collector(theirs)

    def leave() -> None:
        there.difference_update([u for u in there if dice.random() < likely])

    try:
        leave()
        roster = collector.keys({u: parties[u].keys for u in there}, rows)
        leave()
        sealed = collector.shares({u: parties[u].shares(roster) for u in there})
        leave()
        for u in there:
            parties[u].take(sealed[u])
        counted = {u: parties[u].masked(values[u]) for u in there}
        survivors = collector.masked(counted)
        leave()
        asked = dict.fromkeys(survivors, b"")
        told = {u: parties[u].opened(asked if isinstance(parties[u], Secrets) else survivors) for u in there}
        total, count = collector.total(told)
    except CohortLost:
        return "none"
    assert np.array_equal(total, sum((values[u] for u in counted), np.zeros(5, f"u{bits // 8}")))
    assert count == (sum(rows[u] for u in counted) / sum(rows[u] for u in roster) if by_rows else len(counted))
    return "whole" if len(counted) == clients else "of some"


def test_parties_of_both_kinds_sum_up_whoever_leaves() -> None:
    dice = random.Random(0)
    went = Counter(ran(dice, dice.choice((0.0, 0.05, 0.15))) for _ in range(300))
    assert min(went["whole"], went["of some"], went["none"]) > 30, went


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "slopes": ("ho_sfl", {"bottom__optimizer": "adamw"}),
    "exact, 32 bits": (
        "ho_sfl",
        {"algorithm__exact_blocks": 1, "algorithm__directions": 1, "secure__bits": 32, "secure__range": 64.0},
    ),
    "pipelined, by rows": (
        "ho_sfl_pipelined",
        {"algorithm__aggregation": "rows", "partition__name": "dirichlet", "partition__alpha": 0.5},
    ),
}
MIXTURES: dict[str, list[Kind]] = {"device": ["device"] * 3, "both": ["device", "torch", "device"]}


@pytest.mark.xdist_group("device package")  # it takes a while to be made: once is enough
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("method", METHODS)
def test_what_a_cohort_agrees_on_is_the_plain_fixed_point_mean_to_the_bit(
    method: str, mixture: str, base: Path, tiny_bert: Path, sentences: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Whatever the clients run on: of what each of them had to say before it was masked, in exact arithmetic."""
    name, changes = METHODS[method]
    config = run_of(name, tiny_bert, sentences, secure__sum=True, **changes)
    package, said = adapted(base, config, tmp_path / "package"), list[tuple[Array, float]]()
    for rules in (SumRules, FixedPoint):
        monkeypatch.setattr(rules, "encode", _noting(rules.encode, said))
    run = world(config, MIXTURES[mixture], shared_rows(sentences), tmp_path / "run", lambda client: package)
    run.run(3)
    (position, first), *others = run.thetas()
    assert position == 6
    assert len(others) == 3
    for at, theta in others:
        assert at == position
        assert all(np.array_equal(theta[name], first[name]) for name in first)
    rules = sums_of(package.manifest["config"])
    assert rules is not None
    assert len({share for _, share in said}) == (3 if rules.by_rows else 1)
    parts = len(said) // (position * 3)  # slopes, and then exact gradients
    rows, whole = list(run.federation.server.party.agreed.rows), 0
    for step in range(position):  # in one process the clients of a step speak one after the other
        own = said[step * 3 * parts : (step + 1) * 3 * parts]
        means = np.concatenate([_mean(own[part::parts], rules) for part in range(parts)])
        assert np.array_equal(means[: len(rows[step])], rows[step].numpy())
        whole += len(rows[step]) == len(means)  # of exact gradients the history keeps the last round's
    assert whole >= 2


def _mean(said: list[tuple[Array, float]], rules: SumRules) -> Array:
    """Of whole numbers in exact arithmetic: to the nearest, of two the even one; then one division."""
    count, shares = 1 if rules.by_rows else len(said), [share for _, share in said]
    columns = zip(*(values.tolist() for values, _ in said), strict=True)
    totals = [
        sum(round(Fraction(value * share) * Fraction(rules.scale)) for value, share in zip(column, shares, strict=True))
        for column in columns
    ]
    return np.array([total / (count * rules.scale) for total in totals]).astype(np.float32)


def _noting(encode: Callable[..., Any], said: list[tuple[Array, float]]) -> Callable[..., Any]:
    def noting(self: Any, values: Any, what: str, share: float = 1.0) -> Any:
        said.append((np.array(values, dtype=np.float32).reshape(-1), share))
        return encode(self, values, what, share)

    return noting


RULES = SumRules(3, 64, 8.0, 4, True)
MESSAGE = Both(Slopes(7, np.array([1.0, 2.0], np.float32)), Exact(np.array([-3.0], np.float32)))


def answers(told: Mapping[int, bytes], phase: int) -> Masking:
    values = np.frombuffer(b"".join(told.values()), dtype=np.uint8).reshape(len(told), -1)
    return Masking(phase, np.array(list(told), dtype=np.int64), values)


def talked(change: Mapping[int, Callable[[Masking], Message]], rules: SumRules = RULES) -> list[Message]:
    """What client 2 of four says where the answer to an exchange is another one; the others are the reference's."""
    theirs = TheirRules(rules.threshold, FixedPoint(rules.bits, rules.range, rules.most), rules.by_rows)
    collector, others = Collector(theirs), {u: Participant(u, theirs) for u in (0, 5, 9)}
    talk = masked_talk(2, 30, MESSAGE, rules)
    said: list[Any] = [next(talk)]
    keys = {u: own.keys for u, own in others.items()} | {2: said[0].values.tobytes()}
    roster = collector.keys(keys, dict.fromkeys(keys, 30))

    def answer(exchange: int, told: Mapping[int, bytes]) -> Message:
        return change.get(exchange, lambda same: same)(answers(told, exchange))

    said.append(talk.send(answer(0, roster)))
    shares: dict[int, Any] = {u: own.shares(roster) for u, own in others.items()}
    shares[2] = {u: row.tobytes() for u, row in zip(said[1].clients.tolist(), said[1].values, strict=True)}
    said.append(talk.send(answer(1, collector.shares(shares)[2])))
    with pytest.raises(StopIteration) as ended:
        talk.send(answer(2, dict.fromkeys((0, 2, 5), b"")))
    return [*said, ended.value.value]


def test_what_is_said_keeps_what_is_not_of_theta_and_tells_one_share_of_each() -> None:
    *_, masked, opened = talked({})
    assert isinstance(masked, Both)
    assert masked.first.step == 7  # type: ignore[union-attr]
    values = [masked.first.values, masked.second.values]  # type: ignore[union-attr]
    assert [(each.dtype, each.shape) for each in values] == [(np.int64, (2,)), (np.int64, (1,))]
    assert isinstance(opened, Masking)
    assert sorted(opened.clients.tolist()) == [0, 2, 5, 9]
    assert opened.values.shape == (4, SECRET)


def rows(change: Callable[[Array], Array], clients: Callable[[Array], Array] = lambda same: same) -> Callable[..., Any]:
    """The answer with other bytes, or clients."""
    return lambda told: Masking(told.phase, clients(told.clients), change(told.values))


def at(place: tuple[int, int] | tuple[slice, int], by: int = 1) -> Callable[[Array], Array]:
    """A byte is another one."""

    def change(values: Array) -> Array:
        changed = values.copy()
        changed[place] += by
        return changed

    return change


def low(values: Array) -> Array:
    """The first key is one with which everybody comes to the same."""
    changed = values.copy()
    changed[0, :32] = 0
    return changed


WRONG: dict[str, tuple[int, Callable[[Masking], Message], str]] = {
    "another message": (0, lambda told: Join(3), "Join came, 0 is due"),
    "another phase": (0, lambda told: Masking(1, told.clients, told.values), "phase 1 came, 0 is due"),
    "a client twice": (0, rows(lambda v: v, lambda c: c * 0), "one row each"),
    "clients as floats": (0, rows(lambda v: v, lambda c: c.astype(np.float64)), "one row each"),
    "clients as a matrix": (0, rows(lambda v: v, lambda c: c[None]), "one row each"),
    "rows as floats": (0, rows(lambda v: v.astype(np.float32)), "uint8 (4, bytes)"),
    "a row less": (0, rows(lambda v: v[1:]), "uint8 (4, bytes)"),
    "too few": (0, rows(lambda v: v[:2], lambda c: c[:2]), "2 clients came, 3 to 4 are allowed"),
    "too many": (0, rows(lambda v: v[[0, 1, 2, 3, 3]], lambda c: np.arange(5)), "5 clients came, 3 to 4"),
    "short keys": (0, rows(lambda v: v[:, :-1]), f"keys of 103 bytes came, {KEYS + ROWS} are allowed"),
    "its own key is another": (0, rows(lambda v: at((slice(None), 0))(v)), "other keys than this client's"),
    "it is not there": (0, rows(lambda v: v, lambda c: c + 20), "other keys than this client's"),
    "a key of low order": (0, rows(low), "a public key of low order"),
    "another's key is another": (0, rows(at((0, 3))), "sealed with another key, or changed"),
    "two numbers of rows": (0, rows(at((0, KEYS))), "one number, 30 or more, is allowed"),
    "fewer rows than its own": (0, rows(at((slice(None), KEYS), by=256 - 100)), "rows of all clients: 20 came"),
    "another number of rows than the others are told": (0, rows(at((slice(None), KEYS))), "sealed with another key"),
    "nobody's shares": (1, rows(lambda v: v[:0], lambda c: c[:0]), "0 came, 2 or more"),
    "shares of a stranger": (1, rows(lambda v: v, lambda c: c + 10), "others of the cohort"),
    "its own shares": (1, rows(lambda v: v, lambda c: np.array([2, 5, 9])), "client 2 came"),
    "shares changed": (1, rows(at((0, 40))), "sealed with another key, or changed"),
    "shares of another": (1, rows(lambda v: v[::-1]), "sealed with another key, or changed"),
    "shares cut short": (1, rows(lambda v: v[:, :20]), "sealed with another key, or changed"),
    "no byte of shares": (1, rows(lambda v: v[:, :0]), "sealed with another key, or changed"),
    "a list without it": (2, rows(lambda v: v, lambda c: np.array([0, 5, 9])), "this one of them"),
    "a short list": (2, rows(lambda v: v[:2], lambda c: c[:2]), "2 clients whose values came"),
    "a list with a stranger": (2, rows(lambda v: v, lambda c: np.array([0, 2, 8])), "this one of them"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_server_that_says_what_it_may_not_say_is_told_so_in_one_line(kind: str) -> None:
    exchange, change, says = WRONG[kind]
    with pytest.raises(PeerError) as refused:
        talked({exchange: change})
    assert says in str(refused.value)
    assert str(refused.value).isprintable()


def test_no_mutated_answer_gets_more_than_a_refusal() -> None:
    """Bytes changed on the way: refused as a message, or by what it says; or it was nothing that is looked at."""
    dice, went = random.Random(0), Counter[str]()
    for _ in range(400):
        exchange = dice.randrange(3)

        def change(told: Masking) -> Message:
            data = bytearray(pack(told))
            for _ in range(dice.randint(1, 3)):
                place = dice.randrange(len(data))
                data[place : place + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
            return unpack(bytes(data), {"masks": Most(RULES.told * RULES.most)})

        try:
            *_, opened = talked({exchange: change})
            went["answered"] += 1
            assert isinstance(opened, Masking)
            assert opened.values.shape[1] == SECRET
        except (PeerError, TheirPeerError) as error:  # the server refuses shares for numbers that it has not told
            went["refused" if str(error).isprintable() else "not in one line"] += 1
    assert went["refused"] > 300, went
    assert went["refused"] + went["answered"] == 400, went


def test_a_message_of_a_sum_may_be_as_long_as_the_cohort_s_keys_and_elsewhere_there_is_none() -> None:
    told = Masking(0, np.arange(4), np.zeros((4, RULES.told), np.uint8))
    form: dict[str, Any] = {"activations_up": HiddenForm((4,), False)}
    plain = Bounds(rows=1, steps=1, slopes=1, exact=0, state=0, weights=Most(0, 0))
    within = Bounds(rows=1, steps=1, slopes=1, exact=0, state=0, weights=Most(0, 0), masks=RULES.told * RULES.most)
    End({}, form, within).receive(pack(told))
    for bounds, values in ((plain, told.values), (within, np.zeros((5, RULES.told), np.uint8))):
        with pytest.raises(PeerError, match="allowed"):
            End({}, form, bounds).receive(pack(Masking(0, np.arange(len(values)), values)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sampled_clients": 2}, "sampled_clients=2"),
        ({"secure": {"sum": 1}}, "secure.sum=1"),
        ({"secure": {"sum": True, "range": 8.0, "bits": 33}}, "secure.bits=33"),
        ({"secure": {"sum": True, "range": 0.0}}, "secure.range"),
        ({"secure": {"sum": True, "range": 1e7}}, "secure.range"),
        ({"secure": {"sum": True}}, "secure.range"),
        ({"secure": {"sum": True, "range": 8.0, "threshold": 2}}, "secure.threshold=2: 3 to 4"),
        ({"secure": {"sum": True, "range": 8.0, "threshold": 5}}, "secure.threshold=5: 3 to 4"),
        ({"algorithm": {"name": "zo_sfl"}}, "of 'zo_sfl' a device can't do it"),
        ({"codecs": {"slopes_up": ["int8"]}}, "codecs.slopes_up"),
    ],
)
def test_a_recipe_whose_sums_no_device_can_do_is_one_line(change: dict[str, Any], says: str) -> None:
    recipe = {"algorithm": {"name": "ho_sfl"}, "sampled_clients": 4, "secure": {"sum": True, "range": 8.0}}
    assert sums_of(recipe) == SumRules(3, 64, 8.0, 4, False)
    with pytest.raises(PackageError) as refused:
        sums_of(recipe | change)
    assert says in str(refused.value)


def test_without_what_it_needs_a_device_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from halfback_device.session import _check_keys

    _check_keys()
    monkeypatch.delitem(sys.modules, "halfback_device.masking.primitives")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(PackageError, match=r"pip install 'halfback-device\[secure\]'") as refused:
        _check_keys()
    assert str(refused.value).isprintable()
