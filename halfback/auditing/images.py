"""Images from activations: a small decoder, trained on the attacker's own images for a bounded time.

What it comes to is said as PSNR and SSIM (Wang et al. 2004, in windows of 7 × 7 pixels with equal weights), over the
range of the attacker's pixels. Both are closed forms of a few lines, so no library is asked for them.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfback.auditing.apart import first_rows
from halfback.auditing.arrivals import arrive, form_of, level_at, ways_of
from halfback.auditing.clock import Clock
from halfback.auditing.finding import Finding, counted
from halfback.auditing.seat import Seat
from halfback.data.batches import Split

_VICTIMS, _JUDGED_ROWS = 128, 128
_WIDTH = 32  # channels inside the decoder
_BATCH = 32
_MARGIN, _PLANTED = 1.0, 3.0  # decibels above the mean image: that a leak has, and that a planted one must have
_WINDOW = 7
_MOST_HELD = 64


class Decoder(nn.Module):
    """Activations (B, C, H, W), or (B, T, C) of patches, to images: three convolutions, the last to finer pixels."""

    def __init__(self, shape: Sequence[int], image: Sequence[int]) -> None:
        super().__init__()
        channels, size = (shape[0], shape[1]) if len(shape) == 3 else (shape[-1], math.isqrt(shape[0]))
        self.image = tuple(image)
        self.finer = max(1, self.image[1] // size)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, _WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(_WIDTH, self.image[0] * self.finer**2, 3, padding=1),
            nn.PixelShuffle(self.finer),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, channels, height, width)."""
        if hidden.ndim == 3:
            size = math.isqrt(hidden.shape[1])
            hidden = hidden[:, -size * size :].transpose(1, 2).reshape(len(hidden), -1, size, size)
        found = self.layers(hidden)
        return found if found.shape[2:] == self.image[1:] else F.interpolate(found, self.image[1:], mode="bilinear")


def images(seat: Seat, cuts: Sequence[int], clock: Clock) -> list[Finding]:
    """Reads victims' images at each cut, however their activations travel."""
    victims, own = first_rows(seat.rows.victims, _VICTIMS), seat.rows.own
    theirs, mine = _pixels(victims), _pixels(own)
    span, mean = float(mine.max() - mine.min()), mine.mean(dim=0, keepdim=True)
    chance = psnr(mean.expand_as(theirs), theirs, span)
    ways = ways_of(seat.built, form_of(seat.built, level_at(seat.built, cuts[0])))
    cells = len(cuts) * (len(ways) + 1) + 1  # the first way of a cut has twice the time, what is planted once
    seat.tell("images: a planted leak")
    negative, _ = _trained(-mine, mine, clock.part(1 / cells), seat.generator)  # nothing of an image is lost in it
    planted = psnr(_read(negative, -theirs), theirs, span)
    found = []
    for place, cut in enumerate(cuts):
        level, at = level_at(seat.built, cut), clock.part(1 / (len(cuts) - place))
        form = form_of(seat.built, level)
        hidden, own_hidden = seat.hidden(level, victims), seat.hidden(level, own)
        decoder: nn.Module | None = None
        for number, way in enumerate(ways_of(seat.built, form)):
            seat.tell(f"images: cut {cut}, {way.name}")
            came = arrive(way, form, hidden, None, seat.generator)
            ours = arrive(way, form, own_hidden, None, seat.generator).hidden
            time = at.part((2 if decoder is None else 1) / (len(ways) + (decoder is None) - number))
            decoder, values = _trained(ours.cpu(), mine, time, seat.generator, decoder)
            made = _read(decoder, came.hidden.cpu())
            noise = torch.randn(came.hidden.shape, generator=seat.generator) * came.hidden.cpu().std()
            judged = first_rows(own, _JUDGED_ROWS)
            found.append(
                Finding(
                    about="images",
                    how=f"trained decoder of {counted(values)}",
                    measure="PSNR",
                    value=psnr(made, theirs, span),
                    chance=chance,
                    margin=_MARGIN,
                    planted=planted,
                    needed=chance + _PLANTED,
                    control=psnr(_read(decoder, noise), theirs, span),
                    rows=len(victims),
                    cut=cut,
                    sent=way.name,
                    row_bytes=came.row_bytes,
                    quality=seat.quality(level, judged, ours[: len(judged)]),
                    beside={"SSIM": ssim(made, theirs, span), "SSIM by chance": _ssim_of(mean, theirs, span)},
                )
            )
    return found


def psnr(made: Tensor, truth: Tensor, span: float) -> float:
    """Decibels, the mean over the images of 10 · log10(span² / mean squared error); at most 100."""
    error = (made - truth).square().flatten(1).mean(dim=1).clamp_min(span**2 * 1e-10)
    return float((10 * torch.log10(span**2 / error)).mean())


def ssim(made: Tensor, truth: Tensor, span: float) -> float:
    """Mean structural similarity, 1 for equal images; (B, C, H, W), of at least 7 × 7 pixels.

    Variances are those of samples, over n − 1, as scikit-image has them.
    """
    window = min(_WINDOW, *truth.shape[2:])
    count = window * window

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values.double(), window, stride=1)

    a, b = mean(made), mean(truth)
    unbiased = count / (count - 1) if count > 1 else 1.0
    of_a = unbiased * (mean(made.double().square()) - a.square())
    of_b = unbiased * (mean(truth.double().square()) - b.square())
    of_both = unbiased * (mean(made.double() * truth.double()) - a * b)
    one, two = (0.01 * span) ** 2, (0.03 * span) ** 2
    similar = (2 * a * b + one) * (2 * of_both + two) / ((a.square() + b.square() + one) * (of_a + of_b + two))
    return float(similar.mean())


def _ssim_of(mean: Tensor, truth: Tensor, span: float) -> float:
    return ssim(mean.expand_as(truth), truth, span)


def _pixels(split: Split) -> Tensor:
    return split.batch(range(len(split))).inputs["pixel_values"].float()


def _trained(
    hidden: Tensor, wanted: Tensor, clock: Clock, generator: torch.Generator, start: nn.Module | None = None
) -> tuple[nn.Module, int]:
    """A decoder trained until its time is over, and how many values it has; kept is what is best on a tenth of rows.

    `start`: one of the same cut, from which it begins.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = Decoder(hidden.shape[1:], wanted.shape[1:])
    module = nn.Sequential(_Scaled(hidden.mean(), hidden.std() + 1e-6), decoder)
    if start is not None:
        decoder.load_state_dict(start[1].state_dict())  # type: ignore[index]
    held = torch.arange(len(hidden)) % 10 == 0
    judged = held.nonzero().squeeze(1)[:_MOST_HELD]
    own, pixels = hidden[~held], wanted[~held]
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    best, kept = math.inf, {name: value.clone() for name, value in module.state_dict().items()}
    while clock.left:
        for _ in range(8):
            rows = torch.randint(len(own), (_BATCH,), generator=generator)
            loss = F.mse_loss(module(own[rows]), pixels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        error = float(F.mse_loss(_read(module, hidden[judged]), wanted[judged]))
        if error < best:
            best, kept = error, {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(kept)
    return module, sum(parameter.numel() for parameter in decoder.parameters())


class _Scaled(nn.Module):
    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden - self.mean) / self.scale


@torch.no_grad()
def _read(module: nn.Module, hidden: Tensor) -> Tensor:
    return torch.cat([module(part) for part in hidden.split(_BATCH)])
