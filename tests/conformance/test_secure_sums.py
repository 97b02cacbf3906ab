"""Runs whose server learns sums alone: their bits in each engine, clients that leave, what a curious server reads."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halfback.assembly.choices import sums_of
from halfback.config import RunConfig
from halfback.engine.attendance import Attended
from halfback.engine.federation import Federation
from halfback.engine.remote.frames import Frame, Longest, read_question
from halfback.engine.remote.presence import Terms
from halfback.errors import CohortLost, PeerError, UserError
from halfback.masking.fixed_point import FixedPoint
from halfback.parties.holdings import Round
from halfback.testing import small
from halfback.testing.remote import Sockets, deployed, run_over_sockets
from halfback.testing.small import assert_equal_states
from halfback.wire.messages import Exact, Masking, Message, Slopes, Weights, parts_of
from halfback.wire.packing import unpack

UNIFORM = {"algorithm__aggregation": "uniform"}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "slopes": ("ho_sfl", {"algorithm__directions": 5}),
    "slopes, 32 bits": ("ho_sfl", {"algorithm__directions": 5, "secure__bits": 32, "secure__range": 64.0}),
    "slopes and exact gradients": ("ho_sfl", {"algorithm__exact_blocks": 1, "codecs__slopes_down": ["int8"]}),
    "pipelined": ("ho_sfl_pipelined", {}),
    "of two steps, without a cut": ("decomfl", {"steps_per_round": 2}),
    "weights": ("fedavg", UNIFORM),
    "weights, 32 bits": ("fedavg", UNIFORM | {"secure__bits": 32, "secure__range": 16.0}),
    "weights, by rows": ("fedavg", {"partition__name": "dirichlet", "partition__alpha": 0.3}),
    "slopes and exact gradients, by rows": (
        "ho_sfl",
        {"algorithm__exact_blocks": 1, "algorithm__aggregation": "rows", "partition__name": "dirichlet"},
    ),
    "weights, and a server's step": ("sfl_v2", UNIFORM | {"server_step__name": "fedavgm"}),
}


def recipe(algorithm: str, **changes: Any) -> RunConfig:
    given = {"clients": 4, "sampled_clients": 3, "batch_size": 4, "secure__sum": True}
    return small.images(algorithm, **given | changes)


def federation(algorithm: str, **changes: Any) -> Federation:
    return small.built(recipe(algorithm, **changes)).federation


def of_theta(message: Message) -> list[Tensor]:
    """What a message says of θ."""
    found: list[Tensor] = []
    for part in parts_of(message):
        match part:
            case Slopes() | Exact():
                found.append(part.values)
            case Weights():
                found += part.tensors
    return found


def heard(run: Federation, rounds: int, steps: int) -> list[tuple[int, str, Message]]:
    """Every message of so many rounds, as it went."""
    found: list[tuple[int, str, Message]] = []
    run.tap = lambda client, direction, data: found.append((client, direction, unpack(data)))
    small.run(run, rounds, steps=steps)
    return found


def fixed_mean(said: list[Tensor], scale: float, shares: list[float] | None = None, count: float = 0) -> Tensor:
    """The mean of whole numbers in exact arithmetic: to the nearest, of two the even one; then one division.

    `shares`: what each counts, if not all alike, which add up to `count`.
    """
    count, counted = (count, shares) if shares else (len(said), [1.0] * len(said))
    columns = zip(*(tensor.reshape(-1).tolist() for tensor in said), strict=True)
    totals = [
        sum(round(Fraction(value * share) * Fraction(scale)) for value, share in zip(column, counted, strict=True))
        for column in columns
    ]
    return torch.tensor([float(total) / (count * scale) for total in totals], dtype=torch.float64).float()


@pytest.mark.parametrize("kind", RUNS)
def test_the_agreed_values_are_the_mean_of_the_fixed_point_values_to_the_bit(kind: str) -> None:
    algorithm, changes = RUNS[kind]
    steps = changes.get("steps_per_round", 1)
    secure, plain = federation(algorithm, **changes), federation(algorithm, **changes | {"secure__sum": False})
    rules = sums_of(recipe(algorithm, **changes))
    assert rules is not None
    before = [tensor.detach().clone() for tensor in secure.server.party.agreed.replica.parameters.values()]
    told = [(way, of_theta(message)) for _, way, message in heard(secure, 1, steps)]
    said = {client: of_theta(message) for client, way, message in heard(plain, 1, steps) if way == "up"}
    if algorithm == "ho_sfl_pipelined":  # the first exchange of a round has slopes of no step
        said = {client: values for client, values in said.items() if values}
    rows = [secure.server.party.cohort.rows[client] for client in said] if "by rows" in kind else []
    assert "by rows" not in kind or len(set(rows)) == 3
    shares = [own / sum(rows) for own in rows]
    expected = [fixed_mean(list(each), rules.fixed.scale, shares, 1) for each in zip(*said.values(), strict=True)]
    assert len(said) == 3
    assert any(len(each) for each in expected)
    secure.server.agreed_bottom()
    if algorithm in ("fedavg", "sfl_v2"):
        agreed = [each.detach().reshape(-1) for each in secure.server.party.agreed.replica.parameters.values()]
        if algorithm == "sfl_v2":  # its step goes by the rate 1 from where it was, with one rounding each
            expected = [was.reshape(-1) + (mean - was.reshape(-1)) for was, mean in zip(before, expected, strict=True)]
        assert all(torch.equal(one, other) for one, other in zip(agreed, expected, strict=True))
    else:
        assert torch.equal(torch.cat(secure.server.party.agreed.rows).reshape(-1)[: len(expected[0])], expected[0])
    whole = [values for way, values in told if way == "up" and values]
    assert {each.dtype for values in whole for each in values} == {torch.int32 if "32" in kind else torch.int64}


@pytest.mark.parametrize("kind", ["slopes", "pipelined", "weights", "weights, by rows"])
def test_over_a_socket_it_has_the_bits_of_one_process(kind: str, tmp_path: Path) -> None:
    """And two runs have the same state although every key and mask differs: no checkpoint holds any."""
    algorithm, changes = RUNS[kind]
    here, there = federation(algorithm, **changes), federation(algorithm, **changes)
    losses = small.run(here, 3, steps=2)
    make = lambda number: small.alone(recipe(algorithm, **changes), number)  # noqa: E731
    assert run_over_sockets(there, make, rounds=3, steps=2, folder=tmp_path) == losses
    assert_equal_states(here, there, but=("clients",))
    again = federation(algorithm, **changes)
    small.run(again, 3, steps=2)
    assert_equal_states(here, again)
    plain = federation(algorithm, **changes | {"secure__sum": False})
    small.run(plain, 3, steps=2)
    assert here.state()[0].keys() == plain.state()[0].keys()


def test_a_cohort_in_one_pass_and_measured_memory_come_to_the_same() -> None:
    runs = [federation("ho_sfl", algorithm__directions=3, one_pass=joined) for joined in (False, True)]
    first, joined = (small.run(run, 3) for run in runs)
    assert joined == pytest.approx(first, rel=1e-4)  # batches as one: another order of float32 sums
    measured = federation("ho_sfl", algorithm__directions=3)
    assert small.run(measured, 3, measure=True) == first
    assert measured.server.meters.client_peak_bytes > 0


class Leaving(Sockets):
    """Sockets to clients of which some say nothing from some exchange on, of round 1."""

    leaves: Mapping[int, int] = {}  # client → exchange

    def ask(self, questions: Any, seconds: Any, longest: Longest) -> Any:
        for number, came in super().ask(questions, seconds, longest):
            question = read_question(questions[number].header)
            at = getattr(question, "exchange", -1) + 1
            gone = getattr(question, "round", 0) == 1 and at >= self.leaves.get(number, 99)
            yield number, "it says nothing" if gone and isinstance(came, Frame) else came


def ran(folder: Path, leaves: Mapping[int, int], **more: Any) -> tuple[Federation, list[Attended]]:
    """Two rounds of four clients, the second with clients that leave, and who took part."""
    server, events = federation("ho_sfl", **FOUR, **more), list[dict[str, Any]]()
    carrier = Leaving(lambda number: federation("ho_sfl", **FOUR, **more).client(number), 4, folder)
    carrier.leaves = leaves
    try:
        engine = deployed(server, carrier, Terms(60.0, 3, 60.0), events.append)
        for number in range(2):
            engine.run_round(Round(number, 1, number), measure_memory=False)
    finally:
        carrier.close()
    told = [event for event in events if event["event"] == "took part"]
    return server, [Attended(event["round"], tuple(event["cohort"]), event["left"]) for event in told]


FOUR: dict[str, Any] = {"algorithm__directions": 3, "sampled_clients": 4, "deployment__min_cohort": 3}
# The exchanges of a step of HO-SFL: 0 joins, 1 activations, and then those of a sum.
PHASES = {"keys": 2, "shares": 3, "masked": 4, "opened": 5}


BY_ROWS: dict[str, Any] = {"algorithm__aggregation": "rows", "partition__name": "dirichlet"}


@pytest.mark.parametrize(
    ("phase", "more"),
    [*((phase, {}) for phase in PHASES), ("shares", BY_ROWS), ("masked", BY_ROWS)],
    ids=lambda value: value if isinstance(value, str) else "rows" if value else "alike",
)
def test_a_round_goes_on_without_a_client_that_leaves_in_any_phase(
    phase: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, encode = dict[float, Tensor](), FixedPoint.encode  # by the share of who says it: the last

    def noting(self: FixedPoint, values: Tensor, what: str, share: float = 1.0) -> Any:
        said[share] = values
        return encode(self, values, what, share)

    monkeypatch.setattr(FixedPoint, "encode", noting)
    server, rounds = ran(tmp_path, {2: PHASES[phase]}, **more)
    monkeypatch.undo()
    assert dict(rounds[1].left) == {2: PHASES[phase]}
    plain = federation("ho_sfl", **FOUR | more | {"secure__sum": False})
    small.run(plain, 1)
    scale = server.server.links.bounds.sums.fixed.scale  # type: ignore[union-attr]
    plain.server.party.agreed.settle()
    # After one round the agreed rows differ by rounding alone.
    assert server.server.party.agreed.rows[0] == pytest.approx(
        plain.server.party.agreed.rows[0], abs=1 / scale, rel=1e-6
    )
    here = federation("ho_sfl", **FOUR, **more)
    here.attendance = dict(enumerate(rounds))
    small.run(here, 2)
    for run in (server, here):
        run.server.agreed_bottom()
    mine, theirs = server.state()[0], here.state()[0]  # what a client that left has cost is not known here
    names = [name for name in mine if not name.startswith("client.")]
    assert {"history"} < {*names}
    assert [name for name in names if not torch.equal(mine[name], theirs[name])] == []
    # What the row is the mean of: of all four where the masked values had come, else of three.
    own: dict[int, Tensor] = {}
    all_four = federation("ho_sfl", **FOUR, **more)
    small.run(all_four, 1)
    for number in range(4):
        talk = all_four.client(number).converse(Round(1, 1, 1), measure_memory=False)
        all_four.client(number).sums = None
        own[number] = slopes_in(all_four, number, talk)
    counted = [number for number in range(4) if number != 2 or phase == "opened"]
    if not more:
        assert torch.equal(server.server.party.agreed.rows[1], fixed_mean([own[n] for n in counted], scale))
        return
    # Alone a client would hear a gradient that is rounded elsewhere, so here it is what it did say. Of all whose keys
    # came: client 2 has a share, whether it is in the sum or not.
    has = server.server.party.cohort.rows
    shares = [has[number] / sum(has.values()) for number in counted]
    assert len(set(has.values())) == 4
    count = sum(has[number] for number in counted) / sum(has.values())
    mean = fixed_mean([said[share] for share in shares], scale, shares, count)
    assert torch.equal(server.server.party.agreed.rows[1], mean)


def slopes_in(run: Federation, number: int, talk: Any) -> Tensor:
    """The slopes that a client would say, of a server that answers to it alone; nothing of the run changes."""
    side, data = run.server, None
    sums, side.sums = side.sums, None
    side.begin(Round(1, 1, 1), [number])
    try:
        while True:
            data = talk.send(data)
            message = unpack(data)
            if isinstance(message, Slopes):
                return message.values
            answers = side.answers({number: side.hear(number, data)})
            data = side.say(number, answers[number])
    finally:
        talk.close()
        side.sums = sums


@pytest.mark.parametrize("phase", PHASES)
def test_where_too_few_are_left_the_round_is_void_and_no_sum_is_told(phase: str, tmp_path: Path) -> None:
    with pytest.raises(CohortLost, match="round 1: client"):
        ran(tmp_path, {0: PHASES[phase], 2: PHASES[phase]})


def test_without_masks_the_server_reads_each_slope_and_with_them_it_guesses() -> None:
    """The sign of a slope says whether a direction makes this client's loss rise: what a server reads first.

    Of n independent guesses the share of right ones is a half ± 6 · ½ / √n, but for once in 10^8.
    """
    changes = {"algorithm__directions": 150, "clients": 3}
    truth: dict[int, Tensor] = {}
    right: dict[bool, float] = {}
    for secure in (False, True):
        signs: dict[int, Tensor] = {}
        for client, way, message in heard(federation("ho_sfl", **changes, secure__sum=secure), 1, 1):
            if way == "up" and isinstance(message, Slopes):
                signs[client] = message.values.sign()
        truth = truth or signs
        right[secure] = torch.cat([(signs[client] == truth[client]).double() for client in truth]).mean().item()
    assert right[False] == 1
    assert right[True] == pytest.approx(0.5, abs=6 * 0.5 / (3 * 150) ** 0.5)


def unlikely(data: bytes) -> float:
    """χ² of bytes against uniform ones, in standard deviations from what 255 degrees of freedom lead to expect."""
    counts = torch.bincount(torch.frombuffer(bytearray(data), dtype=torch.uint8).long(), minlength=256).double()
    expected = counts.sum() / 256
    return float((((counts - expected) ** 2 / expected).sum() - 255) / (2 * 255) ** 0.5)


def test_what_goes_over_the_wire_of_one_client_is_uniform_and_without_masks_it_is_not() -> None:
    """All that a curious server gets of each client's weights: of uniform bytes above eight once in 10^10."""
    for secure in (False, True):
        said = heard(federation("fedavg", **UNIFORM, secure__sum=secure), 1, 1)
        uploads = [of_theta(message) for _, way, message in said if way == "up" and of_theta(message)]
        assert len(uploads) == 3
        for tensors in uploads:
            found = unlikely(b"".join(each.numpy().tobytes() for each in tensors))
            assert found < 8 if secure else found > 1000


def test_a_value_that_is_too_large_ends_the_run_with_one_line_about_its_client(tmp_path: Path) -> None:
    changes = {"algorithm__directions": 3, "secure__range": 1e-7}
    says = r"secure\.range=1e-07: a value of Slopes is larger; set a larger range"
    with pytest.raises(UserError, match=f"^{says}$"):
        small.run(federation("ho_sfl", **changes), 1)
    with pytest.raises(UserError, match=rf"^client \d: {says}$"):
        run_over_sockets(
            federation("ho_sfl", **changes),
            lambda number: federation("ho_sfl", **changes).client(number),
            rounds=1,
            steps=1,
            folder=tmp_path,
        )


def test_the_server_takes_no_values_without_masks() -> None:
    run = federation("ho_sfl", algorithm__directions=3, clients=3)
    run.server.begin(Round(0, 1, 0), [0, 1, 2])
    with pytest.raises(PeerError, match="values without masks came, keys are due first"):
        run.server.answers({number: Slopes(0, torch.zeros(3)) for number in range(3)})
    with pytest.raises(PeerError, match=r"client 0: Masking\.phase: phase 1 came, 0 is due"):
        run.server.answers({0: Masking(1, torch.tensor([0]), torch.zeros(1, 96, dtype=torch.uint8))})
    keys = Masking(0, torch.tensor([1]), torch.zeros(1, 96, dtype=torch.uint8))
    with pytest.raises(PeerError, match="keys under another number"):
        run.server.answers({0: keys, 1: keys, 2: keys})
