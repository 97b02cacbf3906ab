import numpy as np
import pytest
import torch

from halfback.data.batches import ClientData, Split

ROWS = np.array([3, 5, 8, 13, 21, 34, 2, 1, 0, 40])


def data(rows=ROWS, batch_size=4, seed=7):
    split = Split(torch.arange(50) % 3, images=torch.arange(50.0).view(50, 1, 1, 1))
    return ClientData(split, rows, batch_size=batch_size, seed=seed)


def ids(client, number):
    return client.batch(number).sample_ids.tolist()


def test_a_batch_follows_from_its_number_alone():
    forward = [ids(data(), number) for number in range(12)]
    client = data()
    assert [ids(client, number) for number in reversed(range(12))] == forward[::-1]
    assert [ids(data(seed=8), number) for number in range(12)] != forward


def test_every_epoch_has_every_row_once_in_a_new_order():
    epochs = [[ids(data(), 3 * epoch + place) for place in range(3)] for epoch in range(3)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [4, 4, 2]
        assert sorted(sum(epoch, [])) == sorted(ROWS)  # noqa: RUF017
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_holds_the_rows_it_names():
    batch = data().batch(5)
    assert torch.equal(batch.inputs["pixel_values"].flatten(), batch.sample_ids.float())
    assert torch.equal(batch.labels, batch.sample_ids % 3)
    assert batch.sample_ids.dtype == torch.int64


def test_fewer_rows_than_a_batch():
    client = data(rows=np.array([4, 9]), batch_size=8)
    assert [sorted(ids(client, number)) for number in range(3)] == [[4, 9]] * 3
    single = data(rows=np.array([6]), batch_size=1)
    assert len(single) == 1
    assert [ids(single, number) for number in range(3)] == [[6]] * 3


def test_the_length_is_the_number_of_rows():
    assert len(data()) == 10


def test_the_callers_rows_stay_as_they_were():
    rows = ROWS.copy()
    data(rows=rows).batch(0)
    assert np.array_equal(rows, ROWS)


def test_misuse():
    with pytest.raises(ValueError, match="at least one row"):
        data(rows=np.array([], dtype=int))
    with pytest.raises(ValueError, match="batch_size=0"):
        data(batch_size=0)
    with pytest.raises(ValueError, match="-1"):
        data().batch(-1)
