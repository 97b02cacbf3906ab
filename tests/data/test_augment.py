"""What augmentation makes of training images: by hand, how often each window comes, and that only training sees it."""

import re

import numpy as np
import pytest
import torch

import halfback as hb
from halfback.assembly import build
from halfback.data.augment import Augmentation, Crop, Flip, parse
from halfback.data.batches import ClientData, Split
from halfback.errors import UserError
from halfback.testing import small

ROWS = torch.arange(4000)


def images(count: int, side: int = 5) -> torch.Tensor:
    return torch.randn(count, 2, side, side, generator=torch.Generator().manual_seed(0))


def made(*changes: Crop | Flip, epoch: int = 0, rows: torch.Tensor = ROWS, seed: int = 3) -> torch.Tensor:
    return Augmentation(changes, seed).of(images(len(ROWS))[rows], rows, epoch)


def offsets(padding: int) -> list[tuple[int, int]]:
    """Where each row's window began: found by trying all of them."""
    wide = torch.nn.functional.pad(images(len(ROWS)), (padding,) * 4)
    cropped, found = made(Crop(padding)), {}
    for down in range(2 * padding + 1):
        for right in range(2 * padding + 1):
            same = (wide[:, :, down : down + 5, right : right + 5] == cropped).flatten(1).all(dim=1)
            found |= dict.fromkeys(same.nonzero().flatten().tolist(), (down, right))
    return [found[row] for row in range(len(ROWS))]


def test_each_window_comes_about_equally_often() -> None:
    counts = np.unique(np.array(offsets(1)), axis=0, return_counts=True)[1]
    expected = len(ROWS) / 9
    assert len(counts) == 9
    # χ² of 8 degrees of freedom is above 26.1 once in a thousand seeds; this one is fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 26.1


@pytest.mark.parametrize("probability", [0.25, 0.5, 1.0])
def test_a_mirror_comes_as_often_as_it_should(probability: float) -> None:
    came, before = made(Flip(probability)), images(len(ROWS))
    mirrored = (came == before.flip(-1)).flatten(1).all(dim=1)
    assert torch.equal(came[~mirrored], before[~mirrored])
    # Four standard deviations of a share of 4,000; with 1.0 there is none.
    assert abs(mirrored.float().mean() - probability) <= 4 * (probability * (1 - probability) / len(ROWS)) ** 0.5


def test_a_row_follows_from_seed_number_and_epoch_alone() -> None:
    changes = Crop(2), Flip()
    whole = made(*changes)
    some = torch.tensor([9, 3, 3, 700])
    assert torch.equal(made(*changes, rows=some), whole[some])
    others = [made(*changes, epoch=1), made(*changes, seed=4), made(Flip(), Crop(2))]
    for other in others:
        assert not torch.equal(other, whole)


def test_batches_of_an_epoch_and_the_next() -> None:
    split = Split(torch.zeros(12, dtype=torch.int64), images=images(12))
    augment = Augmentation((Crop(1), Flip()), 5)
    data = ClientData(split, np.arange(12), batch_size=5, seed=1, augment=augment)
    plain = ClientData(split, np.arange(12), batch_size=5, seed=1)
    for number in (0, 2, 4):  # the last of an epoch and the first of the next among them
        batch, same = data.batch(number), plain.batch(number)
        assert torch.equal(batch.sample_ids, same.sample_ids)
        assert torch.equal(batch.labels, same.labels)
        wanted = augment.of(same.inputs["pixel_values"], same.sample_ids, number // 3)
        assert torch.equal(batch.inputs["pixel_values"], wanted)
        assert torch.equal(data.batch(number).inputs["pixel_values"], wanted), "however often it is asked"


def test_in_a_run_training_alone_sees_it_and_every_party_the_same() -> None:
    settings = {"task__augment": [{"name": "crop", "padding": 1}, "flip"]}
    run, plain = build(small.images("ho_sfl", **settings)), build(small.images("ho_sfl"))
    assert run.evaluate() == plain.evaluate()
    one, other = (small.sources(built)[1].batch(0).inputs["pixel_values"] for built in (run, plain))
    assert not torch.equal(one, other)
    alone = small.alone(small.images("ho_sfl", **settings), 1).party.feed.data
    assert torch.equal(alone.batch(0).inputs["pixel_values"], one)
    pooled = small.sources(build(small.images("centralised", **settings)))[0]
    ours, met = small.sources(run)[1].batch(0), dict[int, torch.Tensor]()
    for number in range(-(-len(pooled) // 16)):  # of 2 clients' 8 rows: its first epoch, in another order
        batch = pooled.batch(number)
        met |= dict(zip(batch.sample_ids.tolist(), batch.inputs["pixel_values"], strict=True))
    for row, image in zip(ours.sample_ids.tolist(), one, strict=True):
        assert torch.equal(met[row], image)


def test_rows_of_numbers_have_nothing_to_augment() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    data = hb.Data([(torch.zeros(3), 0), (torch.ones(3), 1)] * 8)
    settings = {"algorithm.name": "ho_sfl", "model.cut": 1, "bottom.train": "full", "clients": 2, "sampled_clients": 1}
    with pytest.raises(UserError, match=r"task\.augment: given has no images; leave it empty"):
        hb.train(model=net, data=data, **settings, **{"task.augment": ["flip"]})


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (["rotate"], "task.augment: augmentation 'rotate' is unknown; allowed: crop, flip"),
        ([{"name": "crop", "pad": 2}], "task.augment: option 'pad' is unknown to crop; did you mean padding?"),
        ([{"name": "crop", "padding": 0}], "task.augment: crop: padding=0: 1 or more are allowed"),
        ([{"name": "flip", "probability": 1.5}], "task.augment: flip: probability=1.5: more than 0 and at most 1"),
        ([{"name": "flip", "probability": "x"}], "task.augment: augmentation flip: probability='x': Input should"),
    ],
)
def test_what_is_refused(chosen: list[object], says: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(says)}"):
        parse(chosen)  # type: ignore[arg-type]
