"""Slopes of a cohort in which some lie: what is agreed on, by hand and at random, and which settings are refused."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from halfback import config
from halfback.errors import UserError
from halfback.parties.cohort import Robust

NONE, CLIP, MEDIAN = Robust(), Robust("clip"), Robust("median")
KRUM, MULTI_KRUM = Robust("krum"), Robust("multi_krum")
EVERY = [NONE, CLIP, MEDIAN, Robust("trimmed_mean"), KRUM, MULTI_KRUM]


@pytest.mark.parametrize(
    ("robust", "said", "agreed"),
    [
        (NONE, [1.0, 2.0, 3.0, 1000.0], 251.5),
        (MEDIAN, [1000.0, 1.0, 3.0], 3.0),
        (MEDIAN, [2.0, -1000.0, 3.0, 1.0], 1.5),  # an even number: the mean of the two in the middle
        (Robust("trimmed_mean"), [1000.0, 4.0, 1.0, 2.0, 3.0], 3.0),
        (Robust("trimmed_mean", trim=2), [1000.0, 900.0, 3.0, 1.0, 2.0, 4.0], 3.5),
        (Robust("trimmed_mean", trim=2), [1000.0, 1.0, 2.0, 3.0], 2.5),  # too few for two at each end: the median
        (CLIP, [1.0, -2.0, 3.0, -1000.0], (1 - 2 + 3 - 7.5) / 4),  # the median size is 2.5
        (Robust("clip", bound=1.0), [1.0, -2.0, 3.0], (1 - 2 + 2) / 3),
        (KRUM, [1000.0, 4.0, 1.0, 2.0, 2.5], 2.0),  # its two nearest are at 0.5 and 1; those of 2.5 at 0.5 and 1.5
        (MULTI_KRUM, [1000.0, 4.0, 1.0, 2.0, 2.5], (4.0 + 1.0 + 2.0 + 2.5) / 4),
        (KRUM, [1.0, 3.0, 1.0, 3.0, 3.0], 3.0),
        (KRUM, [1.0, 2.0, 2.5, 9.0], 2.0),  # too few for one liar: each by its two nearest
        (CLIP, [0.0, 0.0, 1000.0], 0.0),  # where most clients see no slope, nobody is believed that there is one
    ],
)
def test_on_paper(robust: Robust, said: list[float], agreed: float) -> None:
    assert robust.agreed(torch.tensor(said).unsqueeze(1)).item() == pytest.approx(agreed)


def test_each_direction_is_on_its_own() -> None:
    rows = torch.tensor([[1.0, -9e9], [2.0, 5.0], [9e9, 6.0]])
    assert MEDIAN.agreed(rows).tolist() == [2.0, 5.0]
    assert Robust("clip", bound=1.0).agreed(rows).tolist() == pytest.approx([5 / 3, 5 / 3])


def _rows(seed: int, clients: int = 7) -> Tensor:
    return torch.randn(clients, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_none_is_the_mean_bit_for_bit(seed: int) -> None:
    rows = _rows(seed)
    assert torch.equal(NONE.agreed(rows), rows.double().mean(dim=0).float())


@pytest.mark.parametrize("robust", EVERY, ids=lambda robust: robust.name)
def test_a_cohort_of_one_or_two_has_its_mean(robust: Robust) -> None:
    """Between two nobody can tell who lies; with `clip` no slope is three times the mean size of both."""
    for clients in (1, 2):
        rows = _rows(0, clients)
        assert torch.equal(robust.agreed(rows), NONE.agreed(rows))


@pytest.mark.parametrize("robust", EVERY, ids=lambda robust: robust.name)
def test_the_order_of_the_clients_does_not_matter(robust: Robust) -> None:
    rows = _rows(1)
    torch.testing.assert_close(robust.agreed(rows.flip(0)), robust.agreed(rows))
    assert robust.agreed(torch.full((3, 2), 3e38)).tolist() == torch.full((2,), 3e38).tolist()  # nothing overflows


@pytest.mark.parametrize("liars", [1, 2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_a_minority_can_not_leave_the_range_of_the_honest(liars: int, seed: int) -> None:
    """Seven clients. `clip` keeps what is agreed within `bound` times the largest honest size."""
    rows = _rows(seed)
    lies = torch.randn(liars, 3, generator=torch.Generator().manual_seed(100 + seed))
    rows[:liars] = lies * 10.0 ** (seed % 8 - 2)  # from a hundredth of an honest size to 1e5 times
    low, high = rows[liars:].amin(dim=0), rows[liars:].amax(dim=0)
    for robust in (MEDIAN, Robust("trimmed_mean", trim=liars)):
        agreed = robust.agreed(rows)
        assert (agreed >= low).all()
        assert (agreed <= high).all()
    assert (CLIP.agreed(rows).abs() <= CLIP.bound * torch.maximum(-low, high)).all()


def _blanchard(rows: np.ndarray, liars: int, take: int) -> np.ndarray:
    """Section 4 of the paper in float64, client by client: who is near to i, by leaving sets of f + 2 out.

    The sum over the n − f − 2 nearest is the smallest over all choices of so many others.
    """
    count = len(rows)
    scores = []
    for i in range(count):
        away = [sum((float(a) - float(b)) ** 2 for a, b in zip(rows[i], rows[j], strict=True)) for j in range(count)]
        others = [away[j] for j in range(count) if j != i]
        scores.append(min(sum(chosen) for chosen in itertools.combinations(others, count - liars - 2)))
    order = sorted(range(count), key=lambda i: (scores[i], i))
    return np.mean([rows[i].astype(np.float64) for i in order[:take]], axis=0)


@pytest.mark.parametrize(("clients", "liars"), [(5, 1), (7, 1), (7, 2), (9, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_krum_is_the_papers(clients: int, liars: int, seed: int) -> None:
    """One rounding to float32 apart."""
    rows = _rows(seed, clients)
    rows[:liars] *= 10.0 ** (seed - 1)
    for name, take in (("krum", 1), ("multi_krum", clients - liars)):
        agreed = Robust(name, liars=liars).agreed(rows)  # type: ignore[arg-type]
        wanted = torch.from_numpy(_blanchard(rows.numpy(), liars, take)).float()
        torch.testing.assert_close(agreed, wanted, rtol=2e-7, atol=0.0)


@pytest.mark.parametrize("seed", range(20))
def test_krum_never_takes_a_liar_that_is_far_away(seed: int) -> None:
    """Two of seven, together or apart, at a hundred times what the honest are apart: each has four honest near it."""
    rows = _rows(seed)
    rows[:2] = 100 * rows[:2].sign() if seed % 2 else 100.0
    assert any(torch.equal(Robust("krum", liars=2).agreed(rows), row) for row in rows[2:])
    assert torch.equal(Robust("multi_krum", liars=2).agreed(rows), rows[2:].double().mean(dim=0).float())


def test_more_liars_than_that_have_their_way() -> None:
    """So the test above holds what it says: with one liar more it fails."""
    rows = torch.cat([torch.zeros(3, 1), torch.full((4, 1), 1e6)])
    assert MEDIAN.agreed(rows).item() == 1e6
    assert Robust("trimmed_mean", trim=2).agreed(rows).item() > 1e5
    assert CLIP.agreed(rows).item() > 1e5


QUICK = ["beside=[]", "sampled_clients=10"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ["robust.name=mean"],
            "robust.name='mean': input should be 'none', 'clip', 'median', 'trimmed_mean', 'krum' or 'multi_krum'",
        ),
        (["robust.bond=2"], "key 'robust.bond' is unknown; did you mean bound?"),
        (["robust.bound=0"], "robust.bound=0: a positive number is allowed"),
        (["robust.bound=.nan"], "robust.bound=nan: input should be a finite number"),
        (["robust.trim=0"], "robust.trim=0: 1 or more are allowed"),
        (["robust.liars=0"], "robust.liars=0: 1 or more are allowed"),
        (
            ["robust.name=krum", "robust.liars=4"],
            "sampled_clients=10: too few to tell who lies; robust.name=krum with robust.liars=4 needs 11 or more",
        ),
        (
            ["robust.name=median", "sampled_clients=2"],
            "sampled_clients=2: too few to tell who lies; robust.name=median needs 3 or more",
        ),
        (
            ["robust.name=clip", "sampled_clients=2"],
            "sampled_clients=2: too few to tell who lies; robust.name=clip needs 3 or more",
        ),
        (
            ["robust.name=trimmed_mean", "robust.trim=5"],
            "sampled_clients=10: too few to tell who lies; robust.name=trimmed_mean with robust.trim=5 needs 11 or "
            "more",
        ),
        (
            ["robust.name=median", "algorithm.name=split_lora"],
            "robust.name=median: no slopes of several clients come together in split_lora; use robust.name=none, or "
            "one of ho_sfl, ho_sfl_pipelined, zo_sfl, decomfl, spry",
        ),
        (
            ["robust.name=median", "algorithm.name=hosl"],
            "robust.name=median: no slopes of several clients come together in hosl; use robust.name=none, or one of "
            "ho_sfl, ho_sfl_pipelined, zo_sfl, decomfl, spry",
        ),
    ],
)
def test_settings_that_mean_nothing(settings: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        config.resolve("quickstart", [*QUICK, *settings])
    assert str(caught.value) == line


@pytest.mark.parametrize("name", ["ho_sfl", "zo_sfl", "decomfl", "spry"])
def test_settings_that_survive_a_run_folder(name: str) -> None:
    chosen = [f"algorithm.name={name}", "robust.name=trimmed_mean", "robust.trim=4"]
    resolved = config.resolve("quickstart", [*QUICK, *chosen])
    assert resolved.robust == Robust("trimmed_mean", trim=4)
    assert config.from_tree(config.to_tree(resolved), {}) == resolved
