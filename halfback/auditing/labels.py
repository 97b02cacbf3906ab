"""Labels from what the U-shape sends in their place: gradients at the second cut, those of the head, and the loss.

Nothing is trained for it: the server has the head, since it sends it, and each of these is a function of the labels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from halfback.auditing.apart import first_rows, pooled
from halfback.auditing.clock import Clock
from halfback.auditing.finding import Finding, rate_margin
from halfback.auditing.listening import Heard, listened
from halfback.auditing.seat import Seat
from halfback.parties.client_feedback import head_gradient
from halfback.parties.holdings import Head
from halfback.wire.messages import HeadGradient, MiddleActivations

_ROUNDS, _FEWEST = 8, 6  # of one step; and batches
_LABELLINGS = 1 << 17  # of a batch, that are tried for its loss
_FOUND = 0.9  # of planted labels
TRIAL = "each class, through the head that the server sent"
CLUSTERS = "clusters of gradients, each named by one known row"
OF_HEAD = "the gradient of the head, as a sum over rows and classes"
LOSS = "the batch's loss alone, over all labellings"


@dataclass(frozen=True)
class Case:
    """One batch as the server has it, and its labels, which it has not.

    Attributes:
        sent: the middle's output and the head's tensors, as the device had them.
        came: gradients and the loss.
        lengths: of texts.
        labels: (B,).
    """

    sent: MiddleActivations
    came: HeadGradient
    lengths: Tensor | None
    labels: Tensor


def labels(seat: Seat, clock: Clock) -> tuple[list[Finding], list[str]]:
    """Reads labels, and says where there is nothing to read them from; moves θ, so it is the last of all attacks."""
    built, head = seat.built, seat.built.ground.head
    if built.task.objective != "classification":
        return [], ["Labels: a language model's are the text itself, so they are what its tokens are."]
    if head is None:
        heard = next(listened(built, 1))
        said = heard.up.get("Activations")
        if said is not None and said.labels is not None:
            return [], ["Labels: sent in the clear with the activations; only the U-shape (model.head) keeps them."]
        return [], ["Labels: neither they nor a gradient at a second cut are sent, so no attack here reads them."]
    seat.tell("labels: a planted leak")
    planted = [_planted(seat, head)]
    cases = []
    for heard in listened(built, _ROUNDS):
        seat.tell(f"labels: a batch of client {heard.client}")
        cases.append(_case(seat, heard))
        if not clock.left and len(cases) >= _FEWEST:
            break
    truth = torch.cat([case.labels for case in cases])
    common = int(seat.rows.own.labels.mode().values)
    chance = float((truth == common).double().mean())
    classes = len(built.task.label_names)
    found = []
    for how, attack in _attacks(seat, head, classes, cases):
        seat.tell(f"labels: {how}")
        noise = [replace(case, came=_noisy(case.came, seat.generator)) for case in cases[:4]]
        found.append(
            Finding(
                about="labels",
                how=how,
                measure="recovered",
                value=_rate(attack, cases),
                chance=chance,
                margin=rate_margin(chance, len(truth)),
                planted=_separable(classes, seat) if how == CLUSTERS else _rate(attack, planted),
                needed=_FOUND,
                control=None if how in (LOSS, CLUSTERS) else _rate(attack, noise) - _apart(noise, common, chance),
                rows=len(truth),
                sent="U-shape",
            )
        )
    return found, []


Attack = Callable[[Sequence[Case]], list[Tensor]]


def _attacks(seat: Seat, head: Head, classes: int, cases: Sequence[Case]) -> Iterator[tuple[str, Attack]]:
    """Those that can be tried here."""
    most = max(len(case.labels) for case in cases)
    yield TRIAL, lambda tried: [by_trial(head, case, classes) for case in tried]
    if len(cases) * most >= 8 * classes:
        yield CLUSTERS, lambda tried: _by_clusters(tried, classes, seat.generator)
    if head.parameters:
        yield OF_HEAD, lambda tried: [by_head_gradient(head, case, classes) for case in tried]
    if classes**most <= _LABELLINGS:
        yield LOSS, lambda tried: [by_loss(head, case, classes) for case in tried]


def _rate(attack: Attack, cases: Sequence[Case]) -> float:
    guessed = torch.cat(attack(cases))
    return float((guessed == torch.cat([case.labels for case in cases])).double().mean())


def _apart(cases: Sequence[Case], common: int, chance: float) -> float:
    """What a few cases have more of the common class than all have."""
    return max(0.0, float((torch.cat([case.labels for case in cases]) == common).double().mean()) - chance)


def _losses(head: Head, case: Case, label: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The loss of each row as if it had this label, the hidden states and the head's tensors, with a graph."""
    hidden = case.sent.hidden.detach().clone().requires_grad_()
    weights = [tensor.detach().clone().requires_grad_() for tensor in case.sent.head]
    named = dict(zip(head.parameters, weights, strict=True))
    logits = functional_call(head.module, named, (hidden, case.lengths))
    wanted = torch.full((1,), label, dtype=torch.int64, device=logits.device)
    return torch.stack([head.loss(row.unsqueeze(0), wanted) for row in logits]), hidden, weights


@torch.enable_grad()
def by_trial(head: Head, case: Case, classes: int) -> Tensor:
    """Of each row the class whose gradient at the second cut is nearest to the one that came: (B,)."""
    distances = []
    for label in range(classes):
        losses, hidden, _ = _losses(head, case, label)
        (gradient,) = torch.autograd.grad(losses.mean(), hidden)
        distances.append(pooled((gradient - case.came.gradient).square(), case.lengths).sum(dim=1))
    return torch.stack(distances).argmin(dim=0).cpu()


@torch.enable_grad()
def by_head_gradient(head: Head, case: Case, classes: int) -> Tensor:
    """The head's gradient is a mean over rows of one summand each: which, by least squares, (B,)."""
    rows, columns = len(case.labels), []
    for label in range(classes):
        losses, _, weights = _losses(head, case, label)
        for loss in losses:
            found = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
            columns.append(torch.cat([tensor.flatten() for tensor in found]).double() / rows)
    # What a row adds whichever class it has is known: the classes' differences to the first one are what is looked for.
    stacked = torch.stack(columns).view(classes, rows, -1)
    rest = torch.cat([tensor.flatten() for tensor in case.came.head]).double() - stacked[0].sum(dim=0)
    moved = (stacked[1:] - stacked[0]).reshape((classes - 1) * rows, -1)
    solved = torch.linalg.lstsq(moved.T.cpu(), rest.unsqueeze(1).cpu(), driver="gelsd").solution
    share = solved.view(classes - 1, rows)
    return torch.cat([1 - share.sum(dim=0, keepdim=True), share]).argmax(dim=0)


@torch.no_grad()
def by_loss(head: Head, case: Case, classes: int) -> Tensor:
    """The labelling whose mean loss is nearest to the one that came: (B,)."""
    by_class = torch.stack([_losses(head, case, label)[0] for label in range(classes)]).double().cpu()
    sums = torch.zeros(1, dtype=torch.float64)
    for row in range(len(case.labels)):
        sums = (sums.unsqueeze(1) + by_class[:, row]).flatten()
    place = int((sums / len(case.labels) - float(case.came.loss)).abs().argmin())
    digits = []
    for _ in range(len(case.labels)):
        place, digit = divmod(place, classes)
        digits.append(digit)
    return torch.tensor(digits[::-1])


def _by_clusters(cases: Sequence[Case], classes: int, generator: torch.Generator) -> list[Tensor]:
    """As many clusters of the rows' gradients as there are classes; what is known is the label of a row in each."""
    rows = [pooled(case.came.gradient, case.lengths) for case in cases]
    together = torch.cat(rows).float().cpu()
    truth = torch.cat([case.labels for case in cases])
    guessed = named_clusters(together, truth, classes, generator)
    return list(guessed.split([len(each) for each in rows]))


def named_clusters(rows: Tensor, truth: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """k-means of the rows' directions (the tightest of 8 starts); a cluster has the label of its most central row."""
    found, best = torch.zeros(len(rows), dtype=torch.int64), -1.0
    rows = F.normalize(rows, dim=1)
    for _ in range(8):
        centres = rows[torch.randperm(len(rows), generator=generator)[:classes]]
        for _ in range(25):
            near, cluster = (rows @ centres.T).max(dim=1)
            sums = torch.zeros_like(centres).index_add_(0, cluster, rows)
            centres = torch.where(sums.abs().sum(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centres)
        if float(near.sum()) > best:
            best = float(near.sum())
            central = (rows @ centres.T).argmax(dim=0)
            found = truth[central][cluster]
    return found


def _separable(classes: int, seat: Seat) -> float:
    """The planted leak of clusters: gradients at the logits themselves, of a head that knows nothing yet."""
    truth = torch.arange(32 * classes) % classes
    logits = 0.1 * torch.randn(len(truth), classes, generator=seat.generator)
    gradients = logits.softmax(dim=1) - F.one_hot(truth, classes)
    guessed = named_clusters(gradients, truth, classes, seat.generator)
    return float((guessed == truth).double().mean())


def _case(seat: Seat, heard: Heard) -> Case:
    batch = seat.built.federation.client(heard.client).party.feed.data.batch(heard.number)
    up, sent, came = heard.up["Activations"], heard.down["MiddleActivations"], heard.up["HeadGradient"]
    lengths = None if up.lengths is None else up.lengths.long()
    return Case(sent, came, lengths, batch.labels.cpu())


def _planted(seat: Seat, head: Head) -> Case:
    """What a device would send of the attacker's own rows, with nothing between."""
    built = seat.built
    split = first_rows(seat.rows.own, built.config.batch_size)
    batch = split.batch(range(len(split))).to(built.ground.device)
    with torch.no_grad():
        middle = built.model.top(built.model.bottom(batch.inputs), batch.inputs.get("lengths"))
    weights = tuple(tensor.detach().clone() for tensor in head.parameters.values())
    with torch.enable_grad():
        came = head_gradient(head, batch, MiddleActivations(middle, weights))
    return Case(MiddleActivations(middle, weights), came, batch.inputs.get("lengths"), batch.labels.cpu())


def _noisy(came: HeadGradient, generator: torch.Generator) -> HeadGradient:
    """Noise of the size of what came, in its place."""

    def of(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.device)
        return (noise * tensor.float().square().mean().sqrt()).to(tensor.dtype)

    return replace(came, gradient=of(came.gradient), head=tuple(of(tensor) for tensor in came.head))
