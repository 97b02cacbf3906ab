import numpy as np
import pytest
import torch

from halfback.data.partition import partition
from halfback.errors import UserError

LABELS = np.random.default_rng(0).integers(0, 10, 2000)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards"])
def test_parts_are_disjoint_covering_and_repeatable(name):
    parts = partition(LABELS, 7, name=name, alpha=0.5, seed=3)
    assert len(parts) == 7
    assert all(len(part) and part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(2000))
    again = partition(torch.from_numpy(LABELS), 7, name=name, alpha=0.5, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    other = partition(LABELS, 7, name=name, alpha=0.5, seed=4)
    assert not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_it_leaves_the_global_generators_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    partition(LABELS, 5, name="dirichlet", alpha=1.0, seed=0)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_iid_sizes_differ_by_at_most_one():
    sizes = [len(part) for part in partition(LABELS, 7, name="iid", alpha=1.0, seed=0)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("alpha", [0.5, 2.0, 20.0])
def test_class_shares_follow_dirichlet(alpha):
    """A client's share of a class has mean 1/K and variance (K-1)/(K^2 (K alpha + 1))."""
    clients, labels = 4, np.repeat(np.arange(10), 300)
    shares = []
    for seed in range(60):
        for part in partition(labels, clients, name="dirichlet", alpha=alpha, seed=seed):
            shares.append(np.bincount(labels[part], minlength=10) / 300)
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert np.mean(shares) == pytest.approx(1 / clients, abs=1e-9)
    # 60 x 10 independent draws of 4 shares: the relative error of a variance is about sqrt(2/1800), 3 %.
    assert np.var(shares) == pytest.approx(variance, rel=0.15)


def test_dirichlet_draws_each_class_on_its_own():
    labels = np.repeat(np.arange(2), 500)
    first, second = [], []
    for seed in range(100):
        part = partition(labels, 2, name="dirichlet", alpha=1.0, seed=seed)[0]
        counts = np.bincount(labels[part], minlength=2)
        first.append(counts[0])
        second.append(counts[1])
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


def test_shards_give_few_classes_and_even_sizes():
    labels = np.repeat(np.arange(10), 100)
    parts = partition(labels, 10, name="shards", alpha=1.0, seed=1)
    assert [len(part) for part in parts] == [100] * 10
    assert all(len(np.unique(labels[part])) <= 2 for part in parts)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards"])
def test_one_client_has_all_rows(name):
    (part,) = partition(LABELS, 1, name=name, alpha=1.0, seed=0)
    assert np.array_equal(part, np.arange(2000))


@pytest.mark.parametrize(
    ("labels", "clients", "name", "alpha", "said"),
    [
        (LABELS, 2001, "iid", 1.0, "clients=2001.*2000"),
        (LABELS, 0, "iid", 1.0, "clients=0"),
        (LABELS, 4, "dirichlet", 0.0, "alpha=0.0"),
        (LABELS, 4, "dirichlet", float("nan"), "alpha=nan"),
        (np.array([0, 1, 0, 1, 0]), 5, "dirichlet", 0.001, "alpha=0.001 left one of 5 clients"),
        (np.array([0, 1, 0, 1, 0]), 4, "shards", 1.0, "8 rows for 4 clients; there are 5"),
        (np.zeros(50, dtype=int), 4, "dirichlet", 1.0, "needs class labels"),
        (np.zeros(50, dtype=int), 4, "shards", 1.0, "needs class labels"),
        (LABELS, 4, "dirichlett", 1.0, "'dirichlett' is unknown; known: dirichlet,"),
    ],
)
def test_what_is_refused(labels, clients, name, alpha, said):
    with pytest.raises(UserError, match=said) as caught:
        partition(labels, clients, name=name, alpha=alpha, seed=0)
    assert "\n" not in str(caught.value)
