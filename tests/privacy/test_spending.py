"""Of how many releases a row was part: against a count of each row by itself, and on disk through kills."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from halfback.data.batches import ClientData, Split
from halfback.errors import UserError
from halfback.privacy.rules import batches_of_epoch, rows_of_batch
from halfback.privacy.spending import Part, Spending


def source(rows: int, size: int) -> ClientData:
    split = Split(torch.zeros(rows, dtype=torch.int64), images=torch.zeros(rows, 1))
    return ClientData(split, np.arange(rows), batch_size=size, seed=3)


@pytest.mark.parametrize(("rows", "size"), [(20, 8), (5, 8), (16, 8), (17, 8), (1, 3)])
def test_batches_are_as_large_as_the_clients_own(rows: int, size: int) -> None:
    data = source(rows, size)
    for number in range(3 * batches_of_epoch(rows, size)):
        assert len(data.batch(number).sample_ids) == rows_of_batch(number, rows, size)


@pytest.mark.parametrize("repeats", [False, True])
def test_a_rows_releases_are_counted_as_one_by_one(repeats: bool) -> None:
    """With steps that are taken again the account is at least every row's, without them it is the largest exactly."""
    chance, size, held = random.Random(1), 4, {0: 10, 1: 3, 2: 17}
    data = {client: source(rows, size) for client, rows in held.items()}
    spending, rows, cursors = Spending("sample", size), Counter[tuple[int, int]](), dict.fromkeys(held, 0)
    for _ in range(60):
        cohort = chance.sample(sorted(held), 2)
        steps = chance.choice([1, 1, 3])
        parts = {client: Part(cursors[client], steps, held[client]) for client in cohort}
        expected = spending.most_with(parts)
        spending.add(parts)
        assert spending.most == expected
        for client in cohort:
            for number in range(cursors[client], cursors[client] + steps):
                rows.update((client, row) for row in data[client].batch(number).sample_ids.tolist())
            if not (repeats and chance.random() < 0.3):  # else the step is taken again
                cursors[client] += steps
        worst = max(rows.values())
        assert spending.most >= worst if repeats else spending.most == worst
    assert spending.most <= 3 * max(rows.values())  # and no more than it must


def test_a_client_is_part_of_each_step_that_it_takes() -> None:
    spending = Spending("client", 4)
    spending.add({0: Part(0, 3, 10), 1: Part(0, 3, 10)})
    spending.add({0: Part(0, 3, 10)})
    assert (spending.most, spending.steps) == (6, 6)
    assert spending.most_with({1: Part(3, 2, 10)}) == 6
    assert spending.most_with({0: Part(3, 2, 10)}) == 8


def test_releases_are_on_disk_and_none_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "releases.jsonl"
    first = Spending("sample", 4)
    first.keep(path, 0)
    for number in range(5):
        first.add({0: Part(number, 1, 8)})
    path.write_text(path.read_text() + '{"0": [5, 1')  # a kill in the middle of a line: nobody was told
    again = Spending("sample", 4)
    again.keep(path, 5)
    assert (again.most, again.steps) == (first.most, 5)
    again.add({0: Part(4, 1, 8)})
    assert path.read_text().count("\n") == 6
    assert again.most == 4  # the batch of the third epoch was released twice


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"0": 1}', '{"0": [1, 1]}', '{"0": [-1, 1, 1]}', '{"0": [1, 0, 8]}'])
def test_a_line_that_is_none_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "releases.jsonl"
    path.write_text(f'{{"0": [0, 1, 8]}}\n{line}\n')
    with pytest.raises(UserError, match=r"line 2: .* is no release"):
        Spending("sample", 4).keep(path, 0)


def test_a_lost_account_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 0 of the 3 steps that were released: its account is lost"):
        Spending("sample", 4).keep(tmp_path / "releases.jsonl", 3)
