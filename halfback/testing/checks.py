"""The checks of what packages add beside algorithms: codecs, controllers, model families, tasks.

Each is a function that a test calls; it raises AssertionError where the thing doesn't keep what its seam promises.
"""

import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halfback.codecs import make_receiver, make_sender, parse
from halfback.codecs.private import private_of
from halfback.codecs.protocol import Samples
from halfback.codecs.temporal import Temporal
from halfback.controllers import build as start_controller
from halfback.controllers.protocol import LinkUse, Observation
from halfback.data.encode import encode
from halfback.data.options import TaskOptions
from halfback.data.partition import partition
from halfback.data.tasks import load_task
from halfback.errors import PeerError, UserError
from halfback.models.cut import cut
from halfback.models.families import family_of
from halfback.models.own import agrees, uncut

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LINKS = ("activations_up", "gradient_down")
_SAMPLES = 3
_WHERE = "chain"


def check_codec(chain: Sequence[str | Mapping[str, Any]], *, width: int = 50, lost: float | None = None) -> None:
    """Holds a chain of codecs, written as in a recipe, against the seam of codecs.

    For float32 and, where the chain takes them, both half precisions, for some rows, one and none: the matrix comes
    back in its shape and dtype, finite, and no further from what it was than `lost`; the same matrix gives the same
    bytes, never more than the receiving end has room for; the global generator is left alone; parts that the chain
    doesn't make are refused; and both ends go on, to the bit, from a state that was saved as tensors and JSON. With
    `private` in the chain the same matrix must give *other* bytes each time, behind a state too: noise that comes again
    would be none.

    Args:
        chain: names, or mappings with a name and options.
        width: columns of the matrix.
        lost: the share of the matrix's energy (sum of squares) that may be lost; None for any.

    Raises:
        AssertionError: the chain does not keep one of these.
        UserError: the chain can't be read, or can't take float32 of this width.
    """
    codecs = parse(chain, _WHERE)
    remembers = bool(codecs) and isinstance(codecs[0], Temporal)  # samples, and of none there is nothing to say
    for dtype in _DTYPES:
        try:
            _ends(chain, width, dtype)
        except UserError:
            if dtype == torch.float32:
                raise
            continue
        for rows in (2, 1) if remembers else (2, 1, 0):
            _check_round_trip(chain, width, dtype, rows, lost)
        _check_resume(chain, width, dtype)


def _check_round_trip(
    chain: Sequence[str | Mapping[str, Any]], width: int, dtype: torch.dtype, rows: int, lost: float | None
) -> None:
    what = f"{list(chain)}, {rows * _SAMPLES} rows of {dtype}"
    matrix, samples = _matrix(rows * _SAMPLES, width, dtype, seed=0), _samples(rows)
    before = _global_states()
    sender, receiver = _ends(chain, width, dtype)
    parts = sender.encode(matrix.clone(), samples)
    again = _ends(chain, width, dtype)[0].encode(matrix.clone(), samples)
    assert len(parts) == len(again), f"{what}: two ends make different parts of one matrix"
    if _adds_noise(chain):
        assert not (len(matrix) and _all_equal(parts, again)), f"{what}: two ends add the same noise"
    else:
        assert _all_equal(parts, again), f"{what}: two ends make different bytes of one matrix"
    most_bytes, most_parts = receiver.most(len(matrix), len(samples.rows))
    size = sum(part.nbytes for part in parts)
    assert size <= most_bytes, f"{what}: {size} bytes, where the receiver has room for {most_bytes}"
    assert len(parts) <= most_parts, f"{what}: {len(parts)} tensors, where the receiver has room for {most_parts}"
    back = receiver.decode(parts, samples)
    assert (back.dtype, back.shape) == (dtype, matrix.shape), f"{what}: {back.dtype} {tuple(back.shape)} comes back"
    assert torch.isfinite(back).all(), f"{what}: what comes back is not finite"
    assert _global_states() == before, f"{what}: a global generator was drawn from"
    if lost is not None:
        gone, all_of_it = ((m.double() ** 2).sum().item() for m in (back.double() - matrix.double(), matrix))
        assert gone <= lost * all_of_it, f"{what}: {gone / all_of_it:.3g} of the energy is lost; {lost:g} is allowed"
    for wrong in (parts[:-1], (*parts, matrix[:1].float()), (*parts[:-1], parts[-1][None])):
        try:
            _ends(chain, width, dtype)[1].decode(wrong, samples)
        except PeerError:
            continue
        raise AssertionError(f"{what}: parts that no chain makes are not refused as a PeerError")


def _check_resume(chain: Sequence[str | Mapping[str, Any]], width: int, dtype: torch.dtype) -> None:
    what, samples = f"{list(chain)}, {dtype}", _samples(2)
    first, second = (_matrix(2 * _SAMPLES, width, dtype, seed) for seed in (1, 2))
    sender, receiver = _ends(chain, width, dtype)
    receiver.decode(sender.encode(first, samples), samples)
    others = _ends(chain, width, dtype)
    for end, other in zip((sender, receiver), others, strict=True):
        tensors, values = end.state()
        other.load_state({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(values)))
    parts, resumed = (end.encode(second, samples) for end in (sender, others[0]))
    assert len(parts) == len(resumed), f"{what}: a sender goes on otherwise from its state"
    if _adds_noise(chain):
        is_sent = parts[-1].numel() > 0
        assert not (is_sent and _all_equal(parts, resumed)), f"{what}: the same noise comes again behind a state"
    else:
        assert _all_equal(parts, resumed), f"{what}: a sender goes on otherwise from its state"
    backs = [end.decode(parts, samples) for end in (receiver, others[1])]
    assert _equal(*backs), f"{what}: a receiver goes on otherwise from its state"


def _adds_noise(chain: Sequence[str | Mapping[str, Any]]) -> bool:
    return private_of(parse(chain, _WHERE)) is not None


def _ends(chain: Sequence[str | Mapping[str, Any]], width: int, dtype: torch.dtype) -> tuple[Any, Any]:
    codecs = parse(chain, _WHERE)
    sender = make_sender(codecs, width=width, dtype=dtype, where=_WHERE)
    return sender, make_receiver(codecs, width=width, dtype=dtype, where=_WHERE, folder=None)


def _matrix(rows: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _samples(rows: int) -> Samples:
    return Samples(tuple(range(_SAMPLES)), (rows,) * _SAMPLES) if rows else Samples((), ())


def _all_equal(parts: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(_equal(part, other) for part, other in zip(parts, others, strict=True))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.nan_to_num(), other.nan_to_num()) if one.is_floating_point() else torch.equal(one, other)


def check_controller(name: str, options: Mapping[str, Any] | None = None, *, rounds: int = 60) -> None:
    """Holds a rule that sets thresholds against the seam of controllers, over rounds of which some are odd.

    Every link has a threshold in [-1, 1] in every round; two controllers of one seed decide the same, whatever the
    global generators have drawn, and leave these alone; one that goes on from a state, saved as tensors and JSON,
    decides as the one that went through. Odd is a round without an evaluation, one in which nothing was compared or a
    link not used, and one whose losses are not finite.

    Raises:
        AssertionError: the rule does not keep one of these.
        UserError: there is no such rule, or an option has a value that is not allowed.
    """
    one, other, resumed = (start_controller(name, options or {}, _LINKS, 7) for _ in range(3))
    for number in range(rounds):
        said = [controller.thresholds() for controller in (one, other)]
        assert said[0].keys() == set(_LINKS), f"{name}: thresholds for {sorted(said[0])} where {_LINKS} are the links"
        for link, threshold in said[0].items():
            assert -1 <= threshold <= 1, f"{name}: threshold {threshold} for {link} in round {number}"
        assert said[0] == said[1], f"{name}: two controllers of one seed differ in round {number}"
        if number == rounds // 2:
            tensors, values = one.state_dict()
            resumed.load_state_dict({k: t.clone() for k, t in tensors.items()}, json.loads(json.dumps(values)))
        if number >= rounds // 2:
            assert resumed.thresholds() == said[0], f"{name}: round {number} is another behind a state"
            resumed.observe(_round(number, said[0]))
        torch.rand(1)
        before = _global_states()
        for controller in (one, other):
            controller.observe(_round(number, said[0]))
        assert _global_states() == before, f"{name}: a global generator was drawn from"


def _global_states() -> tuple[Any, ...]:
    """Of torch's, NumPy's and Python's own generators."""
    numpy: Any = np.random.get_state(legacy=False)
    return torch.get_rng_state().tolist(), random.getstate(), numpy["state"]["key"].tolist(), numpy["state"]["pos"]


def _round(number: int, thresholds: Mapping[str, float]) -> Observation:
    loss = math.nan if number % 13 == 12 else 2 / (1 + number)
    links = {}
    for link, threshold in list(thresholds.items())[: 1 if number % 7 == 6 else None]:
        compared = 0 if number % 5 == 0 else 40
        mean, deviation = (0.9 + 0.01 * (number % 9), 0.02) if compared else (None, None)
        skipped = compared // (2 + number % 3)
        links[link] = LinkUse(threshold, compared, skipped, mean, deviation, 4000 - 50 * skipped, 4000)
    return Observation(number, loss, loss if number % 4 == 3 else None, links)


@torch.no_grad()
def check_family(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Cuts a model at every block, in two parts and in three, and asks for what the uncut one gives.

    Every cut gives the same bits. They are those of the uncut model, but for texts of Transformers' models: these it
    takes in padded rows, and its parts without padding, so there it is met up to rounding (`models.own.agrees`).

    Args:
        model: of the family, with weights that are not all alike; it is frozen and put in eval mode.
        inputs: of some rows as a bottom takes them: `pixel_values` (B, …), or `input_ids` (N,), the tokens of texts of
            unlike lengths one behind the other, and `lengths` (B,).

    Raises:
        AssertionError: a cut gives something else, or changes the whole model.
        UserError: the model is of no known family.
    """
    row = family_of(model)
    wanted = uncut(model.eval(), inputs)
    blocks, first = cut(model, 1).blocks, cut(model, 1).logits(inputs)
    for at in range(1, blocks + 1):
        for head in (None, *range(blocks - at)):
            parts = cut(model, at, head=head)
            found = parts.logits(inputs)
            where = f"{row.name}: cut after {at} of {blocks} blocks, head {head}"
            assert found.shape == wanted.shape, f"{where}: logits {tuple(found.shape)}, not {tuple(wanted.shape)}"
            assert agrees(found, wanted, row), f"{where}: other logits than the uncut model's"
            assert torch.equal(found, first), f"{where}: other bits than behind the first block"
    assert torch.equal(uncut(model, inputs), wanted), f"{row.name}: cutting has changed the whole model"


def check_task(task: str | TaskOptions, tokenizer: Any = None) -> None:
    """Loads a task as a run does and asks for what runs rely on.

    The same options and seed give the same rows; both splits have rows and as many labels, which are class numbers;
    clients share out the training rows, each once; texts are encoded without an empty row.

    Args:
        task: its name, or its name with options.
        tokenizer: of Transformers; texts are encoded where it is given.

    Raises:
        AssertionError: the task does not keep one of these.
        UserError: there is no such task, or its rows can't be had.
    """
    options = TaskOptions(task) if isinstance(task, str) else task
    raw, again = (load_task(options, seed=3) for _ in range(2))
    for split, other, side in ((raw.train, again.train, "training"), (raw.validation, again.validation, "validation")):
        rows = split.images if split.images is not None else split.texts
        assert rows is not None, f"{options.name}: {side} rows are neither texts nor tensors"
        assert len(rows) == len(split.labels) > 0, (
            f"{options.name}: {len(rows)} {side} rows, {len(split.labels)} labels"
        )
        alike = torch.equal(rows, other.images) if isinstance(rows, Tensor) else rows == other.texts  # type: ignore[arg-type]
        assert alike, f"{options.name}: another load has other {side} rows"
        assert torch.equal(split.labels, other.labels), f"{options.name}: another load has other {side} labels"
        inside = (split.labels >= 0) & (split.labels < max(len(raw.label_names), 1))
        assert inside.all(), f"{options.name}: a {side} label is none of the classes {raw.label_names}"
    parts = partition(raw.train.labels, 2, name="iid", alpha=1.0, seed=0)
    shared = np.sort(np.concatenate(parts))
    assert np.array_equal(shared, np.arange(len(raw.train.labels))), f"{options.name}: rows are lost or doubled"
    if raw.train.images is not None or tokenizer is not None:
        encoded = encode(raw, tokenizer, max_length=options.max_length, template=options.template)
        for part in (encoded.train, encoded.validation):
            inputs = part.batch([0, len(part) - 1]).inputs
            rows = inputs["lengths"] if "lengths" in inputs else inputs["pixel_values"]
            assert len(rows) == 2, f"{options.name}: a batch of two rows has {len(rows)}"
