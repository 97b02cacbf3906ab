"""A secure sum, party by party: its bits, drop-outs anywhere, what the server sees of one client, and who lies."""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from halfback.errors import CohortLost, PeerError
from halfback.masking.collector import Collector
from halfback.masking.fixed_point import FixedPoint, Ring
from halfback.masking.participant import Participant
from halfback.masking.primitives import KeyPair, derived, joined, new_secret, seal, split, stream, unseal
from halfback.masking.rules import PUBLIC, SECRET, SumRules, between

PHASES = ("keys", "shares", "masked", "opened")
Leaving = Mapping[str, set[int]]


@dataclass
class Sum:
    """One sum as it went, with all that the server saw of it."""

    rules: SumRules
    values: Mapping[int, Ring]
    participants: dict[int, Participant] = field(default_factory=dict)
    roster: dict[int, bytes] = field(default_factory=dict)
    masked: dict[int, Ring] = field(default_factory=dict)
    opened: dict[int, dict[int, bytes]] = field(default_factory=dict)
    total: Ring | None = None

    def run(self, leaving: Leaving | None = None) -> "Sum":
        """From the keys to the total; who leaves before a phase says nothing from there on."""
        collector, there = Collector(self.rules), set(self.values)
        leaving = leaving or {}
        there -= leaving.get("keys", set())
        self.participants = {u: Participant(u, self.rules) for u in there}
        self.roster = collector.keys({u: self.participants[u].keys for u in there})
        there -= leaving.get("shares", set())
        sealed = collector.shares({u: self.participants[u].shares(self.roster) for u in there})
        there -= leaving.get("masked", set())
        for u in there:
            self.participants[u].take(sealed[u])
        self.masked = {u: self.participants[u].masked(self.values[u]) for u in there}
        survivors = collector.masked(self.masked)
        there -= leaving.get("opened", set())
        self.opened = {u: self.participants[u].opened(survivors) for u in there}
        self.total, count = collector.total(self.opened)
        assert count == len(self.masked)
        return self


def drawn(chance: random.Random, clients: int, length: int, bits: int, threshold: int | None = None) -> Sum:
    rules = SumRules(threshold or -(-2 * clients // 3), FixedPoint(bits, 8.0, clients))
    numbers = chance.sample(range(1000), clients)
    generator = torch.Generator().manual_seed(chance.randrange(1 << 30))
    told = {u: rules.fixed.encode(torch.randn(length, generator=generator), "values") for u in numbers}
    return Sum(rules, told)


def plain(values: Mapping[int, Ring], clients: set[int]) -> Ring:
    return sum((values[u] for u in clients), np.zeros_like(next(iter(values.values()))))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("clients", [3, 10])
def test_the_sum_has_the_bits_of_the_plain_one(bits: int, clients: int) -> None:
    ran = drawn(random.Random(bits + clients), clients, 1000, bits).run()
    assert np.array_equal(ran.total, plain(ran.values, set(ran.values)))


def test_whoever_leaves_before_whatever_the_sum_is_right_or_there_is_none() -> None:
    """400 random runs; between the phases clients leave, and where the threshold is met the sum must be right."""
    chance, went = random.Random(0), Counter[str]()
    for _ in range(400):
        clients = chance.randint(3, 6)
        threshold = chance.randint(clients // 2 + 1, clients)
        ran = drawn(chance, clients, chance.randint(0, 9), chance.choice((32, 64)), threshold)
        likely = chance.choice((0.05, 0.2))
        there, leaving, enough = set(ran.values), dict[str, set[int]](), True
        for phase in PHASES:
            leaving[phase] = {u for u in there if chance.random() < likely}
            there -= leaving[phase]
            enough &= len(there) >= threshold
            went[phase] += bool(leaving[phase]) and enough
        if enough:
            ran.run(leaving)
            counted = set(ran.values) - leaving["keys"] - leaving["shares"] - leaving["masked"]
            assert np.array_equal(ran.total, plain(ran.values, counted))
            went["sum"] += 1
        else:
            with pytest.raises(CohortLost, match=r"a secure sum: .* of \d clients came, \d are needed"):
                ran.run(leaving)
            assert ran.total is None
            went["none"] += 1
    assert min(went["sum"], went["none"]) > 80
    assert min(went[phase] for phase in PHASES) > 20  # each kind of leaving was survived so often


def unlikely(rings: list[Ring]) -> float:
    """χ² of the bytes against uniform ones, in standard deviations from what is expected of 255 degrees of freedom."""
    counts = np.bincount(np.concatenate([ring.view(np.uint8) for ring in rings]), minlength=256)
    expected = counts.sum() / 256
    return float((((counts - expected) ** 2 / expected).sum() - 255) / np.sqrt(2 * 255))


def without_own_mask(ran: Sum, client: int) -> Ring:
    """A client's masked values as the server has them at the end: it has been told enough shares of the own mask."""
    place = {u: number for number, u in enumerate(ran.roster)}
    shares = {place[u]: told[client] for u, told in ran.opened.items()}
    secret = joined(dict(list(shares.items())[: ran.rules.threshold]))
    mask = stream(derived(secret, b"own mask" + ran.rules.transcript(ran.roster)), len(ran.masked[client]), 64)
    return ran.masked[client] - mask


@pytest.mark.parametrize("bits", [32, 64])
def test_what_the_server_sees_of_one_client_is_uniform_and_what_is_hidden_is_not(bits: int) -> None:
    """Eight standard deviations of a χ² with 255 degrees of freedom: of uniform bytes, less than once in 10^10."""
    ran = drawn(random.Random(1), 4, 20_000, bits).run()
    for client in ran.masked:
        assert unlikely([ran.masked[client]]) < 8
        assert unlikely([ran.values[client]]) > 1000
    assert unlikely([plain(ran.masked, set(ran.masked))]) < 8  # the sum too, as long as the own masks are there
    assert unlikely([ran.total]) > 1000


def test_it_is_uniform_also_when_the_own_masks_were_told() -> None:
    ran = drawn(random.Random(2), 4, 20_000, 64).run()
    for client in ran.masked:
        assert unlikely([without_own_mask(ran, client)]) < 8
    # The reckoning is right: without own masks all together are the sum.
    bare = {client: without_own_mask(ran, client) for client in ran.masked}
    assert np.array_equal(plain(bare, set(bare)), ran.total)


def test_a_client_that_is_late_stays_hidden() -> None:
    """It was held to be gone, so the server has been told its shared masks; then what it said arrives after all."""
    ran = drawn(random.Random(3), 4, 20_000, 64, threshold=3)
    late = min(ran.values)
    ran.run({"masked": {late}})
    place = {u: number for number, u in enumerate(ran.roster)}
    pair = KeyPair(joined({place[u]: told[late] for u, told in ran.opened.items()}))
    assert pair.public == ran.roster[late][PUBLIC : 2 * PUBLIC]  # the server does have its key
    # What it would say now: the same client with the same keys.
    own = ran.participants[late]
    own._held |= {u: bytes(2 * SECRET) for u in ran.masked}  # it took the others' shares
    arrives, transcript = own.masked(ran.values[late]), ran.rules.transcript(ran.roster)
    for u in ran.masked:
        low, high = sorted((late, u))
        public = ran.roster[u][PUBLIC : 2 * PUBLIC]
        mask = stream(pair.shared(public, between(transcript, b"mask", low, high)), len(arrives), 64)
        arrives = arrives - mask if late == low else arrives + mask
    assert unlikely([arrives]) < 8
    own_mask = stream(derived(own._own, b"own mask" + transcript), len(arrives), 64)  # which nobody has told
    assert np.array_equal(arrives - own_mask, ran.values[late])


def test_two_sums_of_the_same_values_have_nothing_in_common() -> None:
    """New secrets a sum: else the difference of two messages would tell how the values changed."""
    one, other = (drawn(random.Random(4), 3, 20_000, 64).run() for _ in range(2))
    for client in one.masked:
        assert np.array_equal(one.values[client], other.values[client])
        assert unlikely([one.masked[client] - other.masked[client]]) < 8


def test_a_client_is_asked_once_and_never_about_a_list_that_cannot_be_right() -> None:
    ran = drawn(random.Random(5), 5, 4, 64, threshold=3).run()
    me, *others = sorted(ran.values)
    with pytest.raises(PeerError, match="it came twice, once is allowed"):
        ran.participants[me].opened(sorted(ran.values))

    def joined_sum() -> Participant:
        collector, own = Collector(ran.rules), {u: Participant(u, ran.rules) for u in ran.values}
        roster = collector.keys({u: each.keys for u, each in own.items()})
        sealed = collector.shares({u: each.shares(roster) for u, each in own.items()})
        own[me].take(sealed[me])
        return own[me]

    for survivors in (
        [me, *others[:1]],
        others,
        [me, me, *others],
        [me, *others, 1001],
    ):  # few, without it, twice, other
        with pytest.raises(PeerError, match="whose values came"):
            joined_sum().opened(survivors)
    told = joined_sum().opened([me, *others[:3]])
    assert told.keys() == {me, *others}
    assert all(len(share) == SECRET for share in told.values())  # one of a client, never both


def test_lists_that_differ_get_the_server_no_secret_twice() -> None:
    """It tells some that a client's values came and others that it has left: of one secret it gets too few shares."""
    ran = drawn(random.Random(6), 5, 4, 64, threshold=3)
    collector, own = Collector(ran.rules), {u: Participant(u, ran.rules) for u in ran.values}
    roster = collector.keys({u: each.keys for u, each in own.items()})
    sealed = collector.shares({u: each.shares(roster) for u, each in own.items()})
    for u, each in own.items():
        each.take(sealed[u])
    victim, *others = sorted(own)
    without = others[:3]
    secrets = {own[victim]._own, own[victim]._masking.secret}
    shares = {u: own[u].opened(without if u in without else sorted(own)) for u in own}
    place = {u: number for number, u in enumerate(roster)}
    as_left = {place[u]: told[victim] for u, told in shares.items() if u in without}
    as_there = {place[u]: told[victim] for u, told in shares.items() if u not in without}
    found = [joined(each) for each in (as_left, as_there) if len(each) >= ran.rules.threshold]
    assert len(found) == 1  # there are no two majorities
    assert set(found) < secrets


Told = dict[int, bytes]


def test_other_cohorts_for_two_clients_end_before_values_are_said() -> None:
    """The server shows one client another key of a third, as if to read what is sealed for it."""
    ran = drawn(random.Random(7), 4, 4, 64, threshold=3)
    own = {u: Participant(u, ran.rules) for u in ran.values}
    victim, other, third, fourth = sorted(own)
    roster = {u: each.keys for u, each in own.items()}
    wrong = roster | {third: Participant(third, ran.rules).keys}
    sealed = {u: own[u].shares(wrong if u == victim else roster) for u in own}
    for u in (other, third, fourth):
        with pytest.raises(PeerError, match="sealed with another key, or changed"):
            own[u].take({peer: sealed[peer][u] for peer in own if peer != u})


@pytest.mark.parametrize("says", ["few", "many", "not me"])
def test_a_cohort_that_cannot_be_is_refused(says: str) -> None:
    ran = drawn(random.Random(8), 4, 4, 64, threshold=3)
    own = {u: Participant(u, ran.rules) for u in ran.values}
    me, *others = sorted(own)
    roster = {u: each.keys for u, each in own.items()}
    rosters: dict[str, Told] = {
        "few": {u: roster[u] for u in (me, others[0])},
        "many": roster | {1001: roster[others[0]]},
        "not me": roster | {me: roster[others[0]]},
    }
    with pytest.raises(PeerError, match=r"Masking\.(clients|values)"):
        own[me].shares(rosters[says])


def test_a_wrong_share_is_found_and_no_sum_comes_of_it() -> None:
    for leaving in ({}, {"masked": {0}}):
        chance = random.Random(9)
        ran = drawn(chance, 4, 4, 64, threshold=3)
        ran.values = dict(enumerate(ran.values.values()))
        ran.run(leaving)
        for told in ran.opened.values():
            told[0] = bytes(SECRET)
        collector = Collector(ran.rules)
        collector._roster, collector._sharing, collector._masked = ran.roster, {0, 1, 2, 3}, ran.masked
        with pytest.raises(CohortLost, match="shares of a secret of client 0 don't fit"):
            collector.total(ran.opened)


def cut_off(told: dict[int, Any]) -> dict[int, Any]:
    """The first client's as something else than it should be."""
    first = min(told)
    own = told[first]
    return told | {first: own[:-1] if isinstance(own, bytes) else dict(list(own.items())[1:])}


def shortened(told: dict[int, Any]) -> dict[int, Any]:
    first = min(told)
    return told | {first: {peer: text[:-1] for peer, text in told[first].items()}}


@pytest.mark.parametrize(
    ("phase", "change"),
    [("keys", cut_off), ("shares", cut_off), ("shares", shortened), ("opened", cut_off), ("opened", shortened)],
)
def test_who_says_what_no_client_may_say_is_named(phase: str, change: Callable[[Any], Any]) -> None:
    ran = drawn(random.Random(10), 3, 4, 64)
    collector, own = Collector(ran.rules), {u: Participant(u, ran.rules) for u in ran.values}

    def said(of: str, told: dict[int, Any]) -> Any:
        return change(told) if of == phase else told

    def whole() -> None:
        roster = collector.keys(said("keys", {u: each.keys for u, each in own.items()}))
        sealed = collector.shares(said("shares", {u: each.shares(roster) for u, each in own.items()}))
        for u, each in own.items():
            each.take(sealed[u])
        survivors = collector.masked({u: each.masked(ran.values[u]) for u, each in own.items()})
        collector.total(said("opened", {u: each.opened(survivors) for u, each in own.items()}))

    with pytest.raises(PeerError) as refused:
        whole()
    assert refused.value.sender == min(ran.values)


def test_the_pieces_do_what_they_are_called() -> None:
    one, other = KeyPair(new_secret()), KeyPair(new_secret())
    key = one.shared(other.public, b"for this")
    assert key == other.shared(one.public, b"for this")
    assert key != one.shared(other.public, b"for that")
    assert unseal(key, seal(key, b"text")) == b"text"
    *most, last = seal(key, b"text")
    with pytest.raises(PeerError, match="changed"):
        unseal(key, bytes([*most, last ^ 1]))
    with pytest.raises(PeerError, match="low order"):
        one.shared(bytes(PUBLIC), b"for this")
    secret = new_secret()
    shares = split(secret, threshold=3, count=5)
    assert joined({4: shares[4], 0: shares[0], 2: shares[2]}) == secret
    assert joined({4: shares[4], 0: shares[0]}) != secret
    assert len({new_secret() for _ in range(100)}) == 100
