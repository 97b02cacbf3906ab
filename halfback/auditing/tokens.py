"""Tokens from activations: the nearest embedding, which needs no rows, and an inverter trained on the attacker's own.

Counted are tokens that a server doesn't know without listening: those that every row of the attacker's has (what a
tokenizer puts around a text, and a template's words) are left out.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from halfback.auditing.apart import first_rows
from halfback.auditing.arrivals import Arrived, Way, arrive, form_of, level_at, ways_of
from halfback.auditing.clock import Clock
from halfback.auditing.finding import Finding, counted, rate_margin
from halfback.auditing.inverter import Trained, trained
from halfback.auditing.seat import Seat
from halfback.data.batches import Batch, Split
from halfback.models.cut import before_blocks
from halfback.models.running import Bottom

_VICTIM_TOKENS = 400
_JUDGED_ROWS = 128  # of the attacker's own, on which a trained model is evaluated
_WORDS = 1024  # of the vocabulary, embedded at once
_FOUND = 0.9  # of planted tokens
_REPLACED = 0.5  # of the tokens in the attacker's second copy of its rows: words that its own texts lack
_FORWARD = 0.3  # of the time, for the attacker's activations
NEAREST = "nearest embedding"


@dataclass(frozen=True)
class _Texts:
    """Splits, the victims as one batch, and which of their tokens count."""

    victims: Split
    own: tuple[Split, Split]
    batch: Batch
    counted: Tensor
    chance: float

    @property
    def own_tokens(self) -> Tensor:
        return torch.cat([_whole(split).inputs["input_ids"] for split in self.own])

    def share(self, guessed: Tensor) -> float:
        """Of the counted tokens that were guessed."""
        return float((guessed.cpu() == self.batch.inputs["input_ids"])[self.counted].double().mean())


@dataclass(frozen=True)
class _Cell:
    """What came by one way at one cut, and what the inverter read of it."""

    cut: int
    way: Way
    came: Arrived
    how: str
    read: float
    control: float
    quality: float | None
    steps: int


@torch.no_grad()
def tokens(seat: Seat, cuts: Sequence[int], clock: Clock) -> list[Finding]:
    """Reads victims' tokens at each cut, however they travel; trained inverters for as long as the clock lets them."""
    words, count = before_blocks(seat.built.model), _vocabulary(seat)
    texts = _texts(seat, cuts, count, clock)
    # In pieces: a bottom lays texts out for attention, which takes more than its share of many short ones.
    table = torch.cat([_embedded(words, part, 1)[:, 0] for part in torch.arange(count).split(_WORDS)])
    planted_near, planted_read = _planted(seat, words, texts, table)
    cells: list[_Cell] = []
    for place, cut in enumerate(cuts):
        cells += _at_cut(seat, texts, table, cut, clock.part(0.9 / (len(cuts) - place)))
    seat.tell("tokens: the nearest embedding, of everything that came")
    noise = torch.randn(cells[0].came.hidden.shape, generator=seat.generator)
    *near, control = nearest(words, count, texts.batch, [*(cell.came.hidden for cell in cells), noise])
    found = []
    for cell, guessed in zip(cells, near, strict=True):
        for how, value, planted, against in (
            (NEAREST, texts.share(guessed), planted_near, texts.share(control)),
            (cell.how, cell.read, planted_read, cell.control),
        ):
            found.append(
                Finding(
                    about="tokens",
                    how=how,
                    measure="recovered",
                    value=value,
                    chance=texts.chance,
                    margin=rate_margin(texts.chance, int(texts.counted.sum())),
                    planted=planted,
                    needed=_FOUND,
                    control=against,
                    rows=int(texts.counted.sum()),
                    cut=cell.cut,
                    sent=cell.way.name,
                    row_bytes=cell.came.row_bytes,
                    quality=cell.quality,
                    beside={} if how == NEAREST else {"training steps": float(cell.steps)},
                )
            )
    return found


def _at_cut(seat: Seat, texts: _Texts, table: Tensor, cut: int, clock: Clock) -> list[_Cell]:
    level = level_at(seat.built, cut)
    form = form_of(seat.built, level)
    seat.tell(f"tokens: activations at cut {cut}")
    theirs, mine = seat.hidden(level, texts.victims), [seat.hidden(level, split) for split in texts.own]
    judged = first_rows(texts.own[0], _JUDGED_ROWS)
    cells: list[_Cell] = []
    ways = ways_of(seat.built, form)
    for place, way in enumerate(ways):
        seat.tell(f"tokens: cut {cut}, {way.name}")
        own = [
            arrive(way, form, hidden, _whole(split).inputs["lengths"], seat.generator).hidden
            for hidden, split in zip(mine, texts.own, strict=True)
        ]
        came = arrive(way, form, theirs, texts.batch.inputs["lengths"], seat.generator)
        inverter = trained(
            torch.cat(own).cpu(), texts.own_tokens, table, clock.part(0.9 / (len(ways) - place)), seat.generator
        )
        if not cells:
            noise = torch.randn(came.hidden.shape, generator=seat.generator) * came.hidden.cpu().std()
            control = texts.share(inverter.read(noise))
        quality = seat.quality(level, judged, own[0][: int(_whole(judged).inputs["lengths"].sum())])
        read = texts.share(inverter.read(came.hidden.cpu()))
        cells.append(_Cell(cut, way, came, _named(inverter), read, control, quality, inverter.steps))
    return cells


def _named(inverter: Trained) -> str:
    return f"trained inverter of {counted(inverter.values)}"


@torch.no_grad()
def nearest(words: Bottom, count: int, batch: Batch, arrived: Sequence[Tensor]) -> list[Tensor]:
    """Of each token the word whose embedding at its place is nearest, by cosine; for several sets of activations.

    Args:
        words: the model before its first block.
        count: words of the vocabulary.
        batch: the texts; only their lengths are looked at.
        arrived: what came of them, (N, H) each.
    """
    lengths = batch.inputs["lengths"]
    places = torch.cat([torch.arange(int(length)) for length in lengths])
    longest = int(lengths.max())
    one = _embedded(words, torch.zeros(1, dtype=torch.int64), longest)[0]
    if torch.equal(one, one[:1].expand_as(one)):  # positions come later in this family
        places, longest = torch.zeros_like(places), 1
    seen = F.normalize(torch.stack([hidden.cpu() for hidden in arrived]), dim=2)
    best, guessed = torch.full(seen.shape[:2], -2.0), torch.zeros(seen.shape[:2], dtype=torch.int64)
    for part in torch.arange(count).split(max(1, _WORDS * 8 // max(longest, 8))):
        table = F.normalize(_embedded(words, part, longest), dim=2)
        for place in range(longest):
            at = (places == place).nonzero().squeeze(1)
            near, word = (seen[:, at] @ table[:, place].T).max(dim=2)
            better = near > best[:, at]
            best[:, at] = torch.where(better, near, best[:, at])
            guessed[:, at] = torch.where(better, part[word], guessed[:, at])
    return list(guessed)


@torch.no_grad()
def _embedded(words: Bottom, numbers: Tensor, length: int) -> Tensor:
    """Each word at the places from the first on, as if a text were that word alone: (words, places, width) float32."""
    device = next(words.parameters()).device
    lengths = torch.full((len(numbers),), length, dtype=torch.int64)
    inputs = {"input_ids": numbers.repeat_interleave(length).to(device), "lengths": lengths.to(device)}
    found: Tensor = words(inputs).float().cpu()
    return found.view(len(numbers), length, -1)


def _planted(seat: Seat, words: Bottom, texts: _Texts, table: Tensor) -> tuple[float, float]:
    """Embeddings as they are, for the nearest one; and turned by a rotation that the inverter has to find."""
    theirs = words(texts.batch.to(seat.built.ground.device).inputs).float().cpu()
    (near,) = nearest(words, len(table), texts.batch, [theirs])
    turn = torch.linalg.qr(torch.randn(theirs.shape[1], theirs.shape[1], generator=seat.generator))[0]
    device = seat.built.ground.device
    own = torch.cat([words(_whole(split).to(device).inputs).float().cpu() for split in texts.own])
    inverter = trained(own @ turn, texts.own_tokens, table, Clock(1.0), seat.generator)
    return texts.share(near), texts.share(inverter.read(theirs @ turn))


def _texts(seat: Seat, cuts: Sequence[int], count: int, clock: Clock) -> _Texts:
    rows = seat.rows
    tokens_of = [rows.victims.tokens_of(row) for row in range(len(rows.victims))]
    most = max(1, sum(torch.tensor(tokens_of).cumsum(0).le(_VICTIM_TOKENS).tolist()))
    victims = first_rows(rows.victims, most)
    own = first_rows(rows.own, _affordable(seat, cuts, clock))
    copy = _replaced(own, count, seat.generator)
    lists = own.some_tokens(len(own))
    known = set(lists[0]).intersection(*lists)
    batch = _whole(victims)
    counted = torch.tensor([int(token) not in known for token in batch.inputs["input_ids"]])
    own_ids = _whole(own).inputs["input_ids"]
    unknown = own_ids[torch.tensor([int(token) not in known for token in own_ids])]
    truth = batch.inputs["input_ids"][counted]
    chance = float((truth == unknown.mode().values).double().mean())
    return _Texts(victims, (own, copy), batch, counted, chance)


def _affordable(seat: Seat, cuts: Sequence[int], clock: Clock) -> int:
    """How many rows, two copies of each, go through the blocks before all cuts in their share of the time."""
    level, some = level_at(seat.built, max(cuts)), first_rows(seat.rows.own, 16)
    begun = time.perf_counter()
    seat.hidden(level, some)
    each = 2 * (time.perf_counter() - begun) / len(some) * sum(cuts) / max(cuts)
    return max(64, int(_FORWARD * clock.left / each))


def _replaced(split: Split, count: int, generator: torch.Generator) -> Split:
    """The same rows with many of their tokens drawn from the whole vocabulary: a server can send anything through."""
    drawn = []
    for row in split.some_tokens(len(split)):
        chosen = torch.rand(len(row), generator=generator) < _REPLACED
        words = torch.randint(count, (len(row),), generator=generator)
        drawn.append(torch.where(chosen, words, torch.tensor(row)).tolist())
    return Split(split.labels, tokens=drawn)


def _vocabulary(seat: Seat) -> int:
    """Tokens that texts may have."""
    task = seat.built.task
    return max(len(seat.built.tokenizer), 1 + task.train.largest()[0], 1 + task.validation.largest()[0])


def _whole(split: Split) -> Batch:
    return split.batch(range(len(split)))
