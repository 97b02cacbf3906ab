"""Chains: stages in order, what can't follow what, and parts that no chain makes."""

import math
from typing import Any

import pytest
import torch
from matrices import random, samples, size
from torch import Tensor

from halfback.codecs import CODECS, make_receiver, make_sender, parse
from halfback.codecs.protocol import Parts
from halfback.codecs.sparsify import sparse_signs
from halfback.errors import PeerError, UserError
from halfback.testing import check_codec

WHERE = "codecs.activations_up"


def ends(chosen: list[Any], width: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    codecs = parse(chosen, WHERE)
    sender = make_sender(codecs, width=width, dtype=dtype, where=WHERE)
    return sender, make_receiver(codecs, width=width, dtype=dtype, where=WHERE, folder=None)


def carried(chosen: list[Any], matrix: Tensor) -> tuple[Parts, Tensor]:
    sender, receiver = ends(chosen, matrix.shape[1], matrix.dtype)
    batch = samples([0], len(matrix)) if len(matrix) else samples([])
    parts = sender.encode(matrix, batch)
    return parts, receiver.decode(parts, batch)


def test_without_a_stage_the_matrix_is_sent_as_it_is() -> None:
    matrix = random(5, 4).bfloat16()
    parts, back = carried([], matrix)
    assert torch.equal(back, matrix)
    assert size(parts) == matrix.nbytes


def test_stages_compose_in_order() -> None:
    """topk, then int8 of the kept values: written out by hand."""
    matrix = random(9, 20)
    (payload, places, scale), back = carried([{"name": "topk", "ratio": 0.3}, "int8"], matrix)
    kept = matrix.gather(1, places.long())
    assert torch.equal(kept.abs().sort(dim=1).values, matrix.abs().sort(dim=1).values[:, -6:])
    assert torch.equal(payload, (kept / scale).round().to(torch.int8))
    assert torch.equal(scale, kept.abs().amax(dim=1, keepdim=True) / 127)
    assert torch.equal(back, torch.zeros_like(matrix).scatter_(1, places.long(), payload.float() * scale))


def test_projection_then_a_cast() -> None:
    matrix = random(9, 20) / 1000
    (payload,), back = carried(
        [{"name": "projection", "size": 8, "seed": 2}, {"name": "cast", "dtype": "float16"}], matrix
    )
    signs = sparse_signs(20, 8, 2)
    assert torch.equal(payload, (matrix @ signs).half())
    exact = payload.double() @ torch.linalg.pinv(signs.double())
    # Eight products in float32, of a matrix whose rows are about 1 long.
    torch.testing.assert_close(back.double(), exact, rtol=0, atol=1e-5 * exact.abs().max().item())


@pytest.mark.parametrize(
    ("chosen", "lost"),
    [
        ([], 0.0),
        (["cast"], 0.001),
        (["int8"], 0.01),
        (["int4"], 0.1),
        (["sign"], 0.5),
        (["cast", "sign"], 0.5),
        (["temporal", {"name": "sign", "feedback": False}], 0.5),
        ([{"name": "topk", "ratio": 1.0}], 0.0),
        (["topk", "int4"], None),
        (["topk", "topk", "topk"], None),
        ([{"name": "topk", "feedback": True}, "int8"], None),
        ([{"name": "topk", "ratio": 0.5}, {"name": "projection", "size": 4}, "int8"], None),
        ([{"name": "projection", "size": 16}, "cast", "int8"], None),
        (["temporal"], 0.001),
        ([{"name": "temporal", "cache": "int8"}, "int8"], 0.01),
    ],
)
def test_every_chain_keeps_what_codecs_promise(chosen: list[Any], lost: float | None) -> None:
    check_codec(chosen, lost=lost)


REFUSED: dict[str, tuple[list[Any], int, torch.dtype, str]] = {
    "int8-then-cast": (["int8", "cast"], 8, torch.float32, "cast takes floats; what comes before it gives torch.int8"),
    "int4-then-int8": (["int4", "int8"], 8, torch.float32, "int8 takes floats; what comes before it gives torch.uint8"),
    "int8-then-topk": (["int8", "topk"], 8, torch.float32, "topk takes floats"),
    "int8-then-projection": (["int8", "projection"], 800, torch.float32, "projection takes floats"),
    "sign-then-int8": (["sign", "int8"], 8, torch.float32, "int8 takes floats; what comes before it gives torch.uint8"),
    "cast-of-bf16": (["cast"], 8, torch.bfloat16, "codec cast to bfloat16: the values are bfloat16 already"),
    "cast-twice": (
        ["cast", {"name": "cast", "dtype": "float16"}],
        8,
        torch.float32,
        "codec cast to float16: the values",
    ),
    "projection-wider": (["projection"], 128, torch.float32, "codec projection: size=128: 1 to 127 are allowed"),
    "projection-of-topk": (["topk", "projection"], 1000, torch.float32, "codec projection: size=128: 1 to 99 are"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("make", [make_sender, make_receiver])
def test_a_chain_that_can_not_work_names_link_and_codec(what: str, make: Any) -> None:
    chosen, width, dtype, says = REFUSED[what]
    more = {"folder": None} if make is make_receiver else {}
    with pytest.raises(UserError) as refused:
        make(parse(chosen, WHERE), width=width, dtype=dtype, where=WHERE, **more)
    assert str(refused.value).startswith(f"{WHERE}: ")
    assert says in str(refused.value)


UNREAD: dict[str, tuple[list[Any], str]] = {
    "codec": (["int9"], "codec 'int9' is unknown; did you mean int8"),
    "codec-far-from-all": (["zip"], f"codec 'zip' is unknown; allowed: {', '.join(CODECS)}"),
    "no-name": ([{"ratio": 0.1}], "codec None is unknown"),
    "name-list": ([{"name": ["int8"]}], "codec ['int8'] is unknown"),
    "option": ([{"name": "topk", "ratios": 0.1}], "option 'ratios' is unknown to topk; did you mean ratio?"),
    "option-of-none": ([{"name": "int8", "bits": 7}], "option 'bits' is unknown to int8; it has no options"),
    "threshold": (
        [{"name": "temporal", "threshold": 0.9}],
        "option 'threshold' is unknown to temporal; allowed: cache",
    ),
    "value": ([{"name": "cast", "dtype": "int8"}], "codec cast: dtype='int8': Input should be 'bfloat16' or 'float16'"),
    "value-kind": ([{"name": "topk", "ratio": "few"}], "codec topk: ratio='few'"),
    "value-range": ([{"name": "topk", "ratio": 2}], "codec topk: ratio=2: more than 0 and up to 1 are allowed"),
    "cache": ([{"name": "temporal", "cache": "int4"}], "codec temporal: cache='int4'"),
    "where": ([{"name": "temporal", "where": "cloud"}], "codec temporal: where='cloud'"),
    "cap-zero": ([{"name": "temporal", "cap_mb": 0}], "codec temporal: cap_mb=0: a positive number is allowed"),
    "cap-nan": ([{"name": "temporal", "cap_mb": math.nan}], "codec temporal: cap_mb=nan"),
    "cap-infinite": ([{"name": "temporal", "cap_mb": math.inf}], "codec temporal: cap_mb=inf: a positive number"),
    "sketch": ([{"name": "temporal", "projection": 0}], "codec temporal: projection=0: 1 or more are allowed"),
    "guard": ([{"name": "temporal", "norm_guard": -0.1}], "codec temporal: norm_guard=-0.1: 0 or more is allowed"),
    "guard-nan": ([{"name": "temporal", "norm_guard": math.nan}], "codec temporal: norm_guard=nan"),
    "seed": ([{"name": "temporal", "seed": -1}], "codec temporal: seed=-1: 0 to 2^64 - 1 are allowed"),
    "temporal-behind": (["int8", "temporal"], "temporal must be the first of its chain"),
    "temporal-twice": (["temporal", "temporal"], "temporal must be the first of its chain, and there only once"),
}


@pytest.mark.parametrize("what", UNREAD)
def test_a_chain_that_can_not_be_read_names_link_and_codec(what: str) -> None:
    chosen, says = UNREAD[what]
    with pytest.raises(UserError) as refused:
        parse(chosen, WHERE)
    assert str(refused.value).startswith(f"{WHERE}: ")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


MALFORMED: dict[str, tuple[list[Any], Any, str]] = {
    "none": (["int8"], lambda parts: (), "codec: 0 tensors came, 2 are allowed"),
    "too-few": (["int8"], lambda parts: parts[:1], "codec: 1 tensors came, 2 are allowed"),
    "too-many": ([], lambda parts: (*parts, *parts), "codec: 2 tensors came, 1 are allowed"),
    "rows": ([], lambda parts: (parts[0][1:],), r"payload: torch.float32 \(3, 8\) came, torch.float32 \(4, 8\) is"),
    "columns": (["int8"], lambda parts: (parts[0][:, 1:], parts[1]), r"payload: torch.int8 \(4, 7\) came"),
    "flat": (["int4"], lambda parts: (parts[0].flatten(), parts[1]), r"payload: torch.uint8 \(16,\) came"),
    "scalar": (["cast"], lambda parts: (torch.tensor(1.0),), r"payload: torch.float32 \(\) came"),
    "dtype": (["cast"], lambda parts: (parts[0].float(),), "payload: torch.float32 .* torch.bfloat16"),
    "swapped": (["topk", "int8"], lambda parts: (parts[0], parts[2], parts[1]), "scale: torch.int16"),
    "nan": ([], lambda parts: (parts[0] * torch.nan,), "payload: a value came that is not finite"),
    "infinity": (["cast"], lambda parts: (parts[0] / 0,), "payload: a value came that is not finite"),
    "overflow": (["int8"], lambda parts: (parts[0], parts[1] * 0 + 3e38), "payload: a value came that is not finite"),
}


@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.parametrize("first", [[], ["temporal"]], ids=["plain", "temporal"])
def test_parts_that_no_chain_makes(what: str, first: list[str]) -> None:
    """Refused before anything is remembered: the next honest message is decoded."""
    chosen, spoil, says = MALFORMED[what]
    if first and what == "none":
        says = "codec: 0 tensors came, 2 are allowed"
    sender, receiver = ends([*first, *chosen], 8)
    matrix, batch = random(4, 8) / 100, samples([5, 6], 1, 3)
    parts = sender.encode(matrix, batch)
    told, rest = parts[: 2 * len(first)], parts[2 * len(first) :]
    with pytest.raises(PeerError, match=says):
        receiver.decode((*told, *spoil(rest)), batch)
    assert receiver.tensors() == []
    receiver.decode(parts, batch)
