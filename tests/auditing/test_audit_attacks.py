"""Each attack by itself: what it is made of against something trusted more, and what it must find and must not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from halfback.assembly import Built
from halfback.auditing.apart import apart
from halfback.auditing.arrivals import Way, arrive, form_of, level_at, ways_of
from halfback.auditing.clock import Clock
from halfback.auditing.finding import Finding, auc, auc_margin, rate_margin, true_positives
from halfback.auditing.images import psnr, ssim
from halfback.auditing.inverter import trained
from halfback.auditing.labels import named_clusters
from halfback.auditing.listening import listened
from halfback.auditing.members import _by_heart
from halfback.auditing.seat import Seat
from halfback.auditing.slopes import of_rows, play
from halfback.codecs import parse
from halfback.errors import UserError
from halfback.report.audited import sentences
from halfback.testing import small


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_the_area_under_the_curve_is_the_share_of_pairs() -> None:
    positives, negatives = (torch.randint(12, (count,), generator=generator()).double() for count in (40, 30))
    pairs = positives[:, None] - negatives
    assert auc(positives, negatives) == pytest.approx(float(((pairs > 0) + 0.5 * (pairs == 0)).double().mean()))
    # One of a hundred negatives may pass: the second largest is the threshold.
    assert true_positives(torch.tensor([98.5, 97.0, 200.0, 98.0]), torch.arange(100.0), 0.01) == 0.5


def test_margins_hold_what_chance_does() -> None:
    """Of 2000 draws from chance about three lie beyond three standard errors on one side; 20 would be no margin."""
    torch.manual_seed(0)
    far = sum(auc(*torch.randn(2, 50)) > 0.5 + auc_margin(50, 50) for _ in range(2000))
    rates = (torch.rand(2000, 400) < 0.1).double().mean(dim=1)
    assert far < 20
    assert int((rates > 0.1 + rate_margin(0.1, 400)).sum()) < 20


def test_psnr_and_ssim_are_what_they_say() -> None:
    """Against the formulas, window by window, in float64 loops."""
    truth, made = torch.rand(2, 3, 3, 9, 10, generator=generator()).double()
    error = (made - truth).square().flatten(1).mean(dim=1)
    assert psnr(made, truth, 2.0) == pytest.approx(float((10 * (4 / error).log10()).mean()))
    found = []
    for image in range(3):
        for channel in range(3):
            for top in range(3):
                for left in range(4):
                    a, b = (x[image, channel, top : top + 7, left : left + 7].flatten() for x in (made, truth))
                    both = torch.cov(torch.stack([a, b]))
                    ends = (2 * a.mean() * b.mean() + 4e-4) * (2 * both[0, 1] + 3.6e-3)
                    found.append(ends / ((a.mean() ** 2 + b.mean() ** 2 + 4e-4) * (both[0, 0] + both[1, 1] + 3.6e-3)))
    assert ssim(made, truth, 2.0) == pytest.approx(float(torch.stack(found).mean()), rel=1e-9)
    assert ssim(truth, truth, 2.0) == pytest.approx(1.0)


@pytest.mark.parametrize("leaks", [True, False])
def test_an_inverter_finds_what_a_rotation_hides_and_nothing_in_noise(leaks: bool) -> None:
    table = torch.randn(50, 16, generator=generator())
    tokens = torch.randint(50, (1200,), generator=generator())
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator()))[0]
    hidden = table[tokens] @ turn if leaks else torch.randn(1200, 16, generator=generator())
    inverter = trained(hidden[:1000], tokens[:1000], table, Clock(0.2), generator())
    right = float((inverter.read(hidden[1000:]) == tokens[1000:]).double().mean())
    assert right == 1.0 if leaks else right < 0.02 + rate_margin(0.02, 200)


def test_training_reads_what_no_linear_map_reads() -> None:
    """Each token is two opposite points, which are one point to a linear map."""
    table = torch.randn(30, 8, generator=generator())
    tokens = torch.randint(30, (3000,), generator=generator())
    sides = 2.0 * torch.randint(2, (3000, 1), generator=generator()) - 1
    hidden = sides * table[tokens]
    right = {}
    for seconds in (0.0, 2.0):
        inverter = trained(hidden[:2700], tokens[:2700], table, Clock(seconds), generator())
        right[seconds] = float((inverter.read(hidden[2700:]) == tokens[2700:]).double().mean())
    assert right[0.0] < 0.6  # one of the two sides
    assert right[2.0] > 0.8


def test_clusters_are_named_by_one_row_each() -> None:
    truth = torch.arange(90) % 3
    rows = torch.eye(3)[truth] + 0.1 * torch.randn(90, 3, generator=generator())
    assert torch.equal(named_clusters(rows, truth, 3, generator()), truth)
    nothing = named_clusters(torch.randn(90, 3, generator=generator()), truth, 3, generator())
    assert float((nothing == truth).double().mean()) < 1 / 3 + rate_margin(1 / 3, 90)


def seat_of(run: Built) -> Seat:
    return Seat(run, apart(run, 0, 64), is_trained=False, tell=lambda what: None, generator=generator())


@pytest.fixture
def run(tiny_bert: Path, sentences: Path) -> Built:
    """HO-SFL on the sentences, of which two fifths are held out."""
    return small.built(
        small.texts(
            "ho_sfl", tiny_bert, sentences, algorithm__estimator="central", task__holdout=0.4, sampled_clients=4
        )
    )


def test_slopes_of_rows_are_parts_of_what_arrives(run: Built) -> None:
    """Their mean over the rows of a batch is what a device sends of it."""
    client, probe = run.clients.side(0).party, run.ground.algorithm.needs.probe
    assert probe is not None
    tables = []
    for number in range(4):
        rows = run.federation.client(number).party.feed.data.batch(0).sample_ids
        tables.append(of_rows(seat_of(run), client, run.task.train.take(rows.tolist()), probe))
    for heard in listened(run, 1):
        # What is sent is the slope of ⟨λ, z⟩, here is that of the loss: they differ by μ² and by rounding, which is
        # divided by μ.
        torch.testing.assert_close(
            tables[heard.client].mean(dim=0).float(), heard.up["Slopes"].values, rtol=0.03, atol=3e-3
        )


def test_a_row_is_harder_to_find_among_others() -> None:
    table = torch.randn(64, 2, generator=generator())
    alone, few, many = (play(table, size, generator()) for size in (1, 4, 32))
    assert alone > 0.99
    assert alone > few > many
    more = play(torch.randn(64, 16, generator=generator()), 4, generator())
    assert more > few
    without = play(table, 4, generator(), others_only=True)
    assert abs(without - 0.5) < auc_margin(2000, 2000)


def test_a_model_that_knows_its_rows_by_heart_is_told_apart(run: Built) -> None:
    inside, outside = _by_heart(seat_of(run))
    assert auc(-inside, -outside) > 0.9


def test_no_row_is_on_both_sides(tiny_bert: Path, tmp_path: Path) -> None:
    """Texts that come again are left out of the attacker's, and an audit without enough others is refused."""
    lines = [f"the film is {word} {number % 20} a plot,{word}" for number in range(60) for word in ("fun", "dull")]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]))
    built = small.built(small.texts("ho_sfl", tiny_bert, tmp_path / "rows.csv", task__holdout=0.4))
    with pytest.raises(UserError, match=r"^\d+ training rows and 0 validation rows that are none of them"):
        apart(built, 0, 64)


def test_what_arrives_is_what_a_link_carries(run: Built) -> None:
    """Through a way of the audit as over the run's own link, to the bit."""
    level = level_at(run, 1)
    form = form_of(run, level)
    batch = run.federation.client(0).party.feed.data.batch(0)
    hidden = level.bottom(batch.inputs).detach()
    ways = {way.name: arrive(way, form, hidden, batch.inputs["lengths"], generator()) for way in ways_of(run, form)}
    plain, rows = hidden.nbytes / len(batch.labels), len(batch.labels)
    assert torch.equal(ways["float32"].hidden, hidden)
    assert ways["float32"].row_bytes == plain
    assert ways["int8"].row_bytes == pytest.approx(len(hidden) * (16 + 4 + 0) / rows, rel=0.5)
    assert ways["temporal"].row_bytes < 0.6 * plain  # the second time nothing is sent
    error = {name: float((came.hidden - hidden).square().mean().sqrt() / hidden.std()) for name, came in ways.items()}
    assert error["float32"] == 0 < error["int8"] < error["projection 5"]
    assert error["noise 2"] == pytest.approx(2, rel=0.1)


def test_noise_that_was_sent_several_times_is_looked_at_as_the_mean(run: Built) -> None:
    form = form_of(run, level := level_at(run, 1))
    batch = run.federation.client(0).party.feed.data.batch(0)
    hidden = level.bottom(batch.inputs).detach()
    chain = parse([{"name": "private", "clip": 1e6, "noise": 1e-3}], "codecs.activations_up")
    errors = []
    for releases in (1, 16):
        came = arrive(Way("", chain, releases=releases), form, hidden, batch.inputs["lengths"], generator())
        errors.append(float((came.hidden - hidden).square().mean().sqrt()))
        assert came.row_bytes == hidden.nbytes / len(batch.labels)
    assert errors[0] == pytest.approx(2e3, rel=0.1)
    assert errors[1] == pytest.approx(2e3 / 4, rel=0.1)


def finding(**changes: object) -> Finding:
    found = Finding("tokens", "nearest embedding", "recovered", 0.5, 0.1, 0.05, 1.0, 0.9, 0.1, 400, 1, "float32")
    return replace(found, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "fence", "conclusion"),
    [
        ({}, "", "leaks"),
        ({"value": 0.14}, "", "not by this attack"),
        ({"value": 0.0, "planted": 0.5}, "planted leak not found", "none"),
        ({"control": 0.3}, "finds what is not there", "none"),
    ],
)
def test_a_conclusion_needs_sound_fences(changes: dict[str, float], fence: str, conclusion: str) -> None:
    found = finding(**changes)
    assert (found.fence, found.conclusion) == (fence, conclusion)
    values = {"findings": [vars(found) | {"fence": fence, "conclusion": conclusion}], "cut": 1, "notes": []}
    said = " ".join(sentences(values))
    assert ("no conclusion" in said) == (conclusion == "none")
    assert ("leaks" in said) == (conclusion == "leaks")
