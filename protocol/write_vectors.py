"""Writes protocol/vectors: what the reference implementation makes of inputs that any implementation can make too.

    python protocol/write_vectors.py

The files are recorded once and kept: `tests/protocol` holds the reference to them, `device/tests` the client in NumPy.
A change of one of them changes the protocol. docs/protocol.md says how they are to be read.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from halfback.codecs import make_receiver, make_sender, parse
from halfback.codecs.protocol import Parts, Samples
from halfback.codecs.temporal import TemporalReceiver, TemporalSender
from halfback.data.batches import ClientData, Split
from halfback.engine.remote import frames, stream
from halfback.engine.sums import Sums, masked_talk
from halfback.errors import PeerError
from halfback.masking import primitives
from halfback.masking.fixed_point import FixedPoint
from halfback.masking.rules import SumRules, between
from halfback.parties.holdings import VectorForm
from halfback.wire.fields import FIELDS
from halfback.wire.messages import (
    Activations,
    Both,
    Caches,
    CutGradient,
    Encoded,
    Exact,
    HandOver,
    HeadGradient,
    History,
    Join,
    Losses,
    Masking,
    Message,
    MiddleActivations,
    Nothing,
    Share,
    Slopes,
    Turns,
    Weights,
    kinds_of,
    parts_of,
)
from halfback.wire.packing import Most, pack, unpack
from halfback.zeroth.directions import (
    Directions,
    _gaussian_table,
    direction_of,
    name_number,
    philox,
    seed_for,
    seeds_under,
)
from halfback.zeroth.replay import Falls, Replica, RowForm, schedule
from halfback.zeroth.update import UpdateRule

FOLDER = Path(__file__).resolve().parent / "vectors"
Json = dict[str, Any]


def shown(tensor: Tensor) -> Json:
    """A tensor in JSON: its bytes, little-endian, in hexadecimal."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"dtype": str(tensor.dtype)[6:], "shape": list(tensor.shape), "hex": raw.hex()}


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, little-endian."""
    return sha256(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def seeds() -> Json:
    """Paths and their seeds, names and their numbers."""
    paths: list[tuple[int | str, ...]] = [
        (),
        (0,),
        ("",),
        ("1", 2),
        (1, 2),
        (12,),
        (-1, "ä"),
        (2**64, "direction"),
        *((17, "direction", "bottom", step, p) for step in (0, 1, 1000) for p in (0, 1)),
    ]
    names = ["", "weight", "bottom.layers.0.attention.q.lora_A.default.weight", "größe"]
    return {
        "seeds": [{"path": list(path), "seed": f"{seed_for(*path):016x}"} for path in paths],
        "names": [{"name": name, "number": f"{name_number(name):016x}"} for name in names],
    }


def directions() -> Json:
    """Blocks of the generator, the table of the normal law, and directions of both laws."""
    words = (0, 0xFFFFFFFF, 0x243F6A88)
    blocks = []
    for counter, key in (((0, 0, 0, 0), (0, 0)), ((words[1],) * 4, (words[1],) * 2), ((1, 2, 3, words[2]), (5, 6))):
        made = philox(tuple(torch.tensor([word]) for word in counter), key)
        blocks.append({"counter": list(counter), "key": list(key), "words": [int(word) for word in made]})
    table = _gaussian_table(torch.device("cpu"))
    few = [0, 1, 255, 32767, 32768, 65535]
    cases = []
    for law in ("rademacher", "gaussian"):
        for name, shape in (("weight", (3, 5)), ("table", (300, 433)), ("weight", ())):
            seed = seed_for(17, "direction", "bottom", 3, 1)
            made_of = direction_of(seed, name, torch.zeros(shape), law=law)  # type: ignore[arg-type]
            case = {"seed": f"{seed:016x}", "name": name, "shape": list(shape), "law": law, "sha256": digest(made_of)}
            cases.append(case | {"first": shown(made_of.flatten()[:15]), "last": shown(made_of.flatten()[-3:])})
    return {
        "philox": blocks,
        "gaussian_table": {"sha256": digest(table), "places": few, "values": shown(table[few])},
        "directions": cases,
    }


THETA = {"a.weight": (3, 5), "b.bias": (7,), "c.weight": (2, 67), "scalar": ()}
LARGE = 70_001  # more values than any implementation takes at once, and no multiple of a block
RULES: dict[str, Json] = {
    "sgd": {"optimizer": "sgd"},
    "momentum": {"optimizer": "momentum", "momentum": 0.8},
    "sign": {"optimizer": "sign"},
    "adamw": {"optimizer": "adamw"},
    "sgd-normalize": {"optimizer": "sgd", "normalize": True},
    "sgd-clip": {"optimizer": "sgd", "clip": 3.0},
    "adamw-decay-clip": {"optimizer": "adamw", "weight_decay": 0.1, "clip": 3.0},
    "momentum-decay-normalize": {"optimizer": "momentum", "weight_decay": 0.1, "normalize": True},
}
SCHEDULES = [("constant", 0, 9), ("constant", 3, 9), ("linear", 2, 9), ("cosine", 2, 9), ("multistep", 2, 9)]
FALLS = Falls((3, 4, 7), 0.3)  # of the multistep schedule


def start(name: str, shape: tuple[int, ...]) -> Tensor:
    """Values that everybody can make: of the normal law, under a seed of the parameter's own."""
    return direction_of(seed_for("start"), name, torch.zeros(shape), law="gaussian")


def _case(rule: Json, rows: Tensor, steps: Sequence[int], **how: Any) -> Json:
    """What rows make of θ: of the small parameters all bits, of a large one a digest."""
    shapes = {**THETA, "large": (LARGE,)} if how.get("large") else THETA
    shape, warmup, total = how.get("schedule", ("constant", 0, 9))
    form = RowForm(how.get("groups"), how.get("exact", ()))
    replica = Replica(
        {name: start(name, size) for name, size in shapes.items()},
        UpdateRule(lr=0.01, **rule),
        Directions(seeds_under(17, "direction", "bottom"), how.get("law", "rademacher")),
        schedule=schedule(shape, warmup=warmup, total=total, falls=FALLS),
        form=form,
    )
    replica.replay(0, rows, list(steps))
    result = {"theta": _held(replica.parameters)}
    result |= {f"moment.{moment}": _held(held) for moment, held in replica.moments.items()}
    return {
        "rule": {"lr": 0.01} | rule,
        "law": how.get("law", "rademacher"),
        "seed_path": [17, "direction", "bottom"],
        "schedule": {"shape": shape, "warmup": warmup, "total": total} | _falls(shape),
        "shapes": {name: list(size) for name, size in shapes.items()},
        "groups": None if form.groups is None else [list(names) for names in form.groups],
        "exact": list(form.exact),
        "rows": shown(rows),
        "steps": list(steps),
        "result": result,
    }


def _falls(shape: str) -> Json:
    """What a multistep schedule has beside the others."""
    return {"milestones": list(FALLS.milestones), "gamma": FALLS.gamma} if shape == "multistep" else {}


def _held(tensors: Mapping[str, Tensor]) -> Json:
    return {
        name: {"sha256": digest(tensor)} if tensor.numel() > 300 else shown(tensor) for name, tensor in tensors.items()
    }


def _rows(count: int, width: int) -> Tensor:
    return direction_of(seed_for("rows"), f"{count}x{width}", torch.zeros(count, width), law="gaussian")


def replays() -> Json:
    """Every update rule over several steps, and each way in which rows may be made."""
    five = range(5)
    cases = {name: _case(rule, _rows(5, 3), five) for name, rule in RULES.items()}
    cases["adamw-gaussian-one-direction"] = _case(RULES["adamw"], _rows(5, 1), five, law="gaussian")
    cases["momentum-large"] = _case(RULES["momentum"], _rows(5, 3), five, large=True)
    cases["adamw-large-gaussian"] = _case(RULES["adamw"], _rows(3, 2), range(3), large=True, law="gaussian")
    cases["sgd-of-turns"] = _case(RULES["sgd"], _rows(5, 2), [2, 3, 3, 4, 4], schedule=("linear", 2, 9))
    for shape in SCHEDULES[1:]:
        cases[f"sgd-{shape[0]}-warmup"] = _case(RULES["sgd"], _rows(5, 2), five, schedule=shape)
    groups = [["a.weight", "gone"], ["b.bias", "c.weight"], ["scalar"]]
    cases["sgd-clip-groups"] = _case(RULES["sgd-clip"], _rows(4, 6), range(4), groups=groups)
    for name in ("sgd", "sign", "momentum", "adamw-decay-clip", "sgd-normalize"):
        exact = ["b.bias", "scalar"]
        cases[f"{name}-exact"] = _case(RULES[name], _rows(4, 2 + 8), range(4), exact=exact)
    cases["adamw-exact-alone"] = _case(RULES["adamw"], _rows(4, 8), range(4), exact=["b.bias", "scalar"])
    factors = [
        {
            "shape": shape,
            "warmup": warmup,
            "total": total,
            "factors": [schedule(shape, warmup=warmup, total=total, falls=FALLS)(step).hex() for step in range(12)],
        }
        | _falls(shape)
        for shape, warmup, total in SCHEDULES
    ]
    return {"schedules": factors, "cases": cases}


def _values(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) / 8 - 1


def _whole(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def _messages() -> dict[str, Message]:
    slopes = Slopes(7, torch.tensor([0.5, -2.0]))
    batch = (_whole(2, 3), _whole(0, 1), _whole(9, 4))
    coded: Any = Encoded((_values(5, 4).to(torch.int8), _values(5, 1)))
    told: Any = Encoded((torch.tensor([float("nan"), 0.5]), torch.tensor([False, True]), _values(2, 4).bfloat16()))
    signs: Any = Encoded((torch.arange(64, dtype=torch.uint8).reshape(2, 32), _values(2, 1)))
    return {
        "nothing": Nothing(),
        "join": Join(1 << 40),
        "history": History(7, _values(3, 2)),
        "history-empty": History(0, torch.zeros(0, 2)),
        "activations-texts": Activations(_values(5, 4), *batch),
        "activations-labels-of-tokens": Activations(_values(5, 4), batch[0], _whole(-100, 3, -100, 4, 5), batch[2]),
        "activations-image": Activations(_values(2, 3, 2, 2), None, None, _whole(5, -1)),
        "activations-repeated": Activations(_values(5, 4).bfloat16(), None, None, None),
        "activations-encoded": Activations(coded, *batch),
        "activations-temporal": Activations(told, *batch),
        "gradient": CutGradient(_values(5, 4)),
        "gradient-half": CutGradient(_values(5, 4).half()),
        "gradient-encoded": CutGradient(coded),
        "slopes": Slopes(-1, torch.tensor([0.5, -2.0])),
        "losses": Losses(torch.tensor([0.693])),
        "weights": Weights(
            (_values(3, 2), torch.tensor(2.5), torch.zeros(0, 4), torch.tensor([1.5], dtype=torch.float64))
        ),
        "weights-none": Weights(()),
        "middle": MiddleActivations(_values(5, 4), (_values(2, 4),)),
        "head-gradient": HeadGradient(_values(5, 4), torch.tensor([0.693]), (_values(2, 4), torch.tensor(0.5))),
        "caches": Caches(torch.tensor([1 << 60, -3]), torch.tensor([0.5, -1.0])),
        "caches-up": Caches(torch.tensor([7]), None),
        "hand-over": HandOver((_values(2, 3),)),
        "share": Share(7, _values(2, 2), 3),
        "slopes-and-activations": Both(slopes, Activations(_values(5, 4), *batch)),
        "slopes-and-gradient": Both(slopes, CutGradient(_values(2, 2))),
        "history-and-state": Both(History(7, _values(3, 2)), Weights((_values(2, 3), _values(4)))),
        "history-and-turns": Both(History(7, _values(3, 2)), Turns(_whole(2, 3, 2))),
        "turns": Turns(_whole(5)),
        "slopes-and-exact": Both(slopes, Exact(_values(6))),
        "slopes-and-exact-encoded": Both(slopes, Exact(signs)),
        "history-and-exact": Both(History(7, _values(3, 2)), Exact(_values(3 * 6))),
        "history-and-exact-encoded": Both(History(7, torch.zeros(2, 0)), Exact(signs)),
        "masking": Masking(1, torch.tensor([2, 1 << 40]), torch.arange(12, dtype=torch.uint8).reshape(2, 6)),
        "masking-list": Masking(2, torch.tensor([0, 5, 9]), torch.zeros(3, 0, dtype=torch.uint8)),
        "masked-slopes": Both(Slopes(7, torch.tensor([1 << 62, -1])), Exact(torch.tensor([3, -(1 << 63)]))),
    }


def told(value: Any) -> Any:
    """A field's value in JSON."""
    if isinstance(value, Tensor):
        return shown(value)
    if isinstance(value, Encoded):
        return {"encoded": [shown(part) for part in value.parts]}
    return {"tensors": [shown(each) for each in value]} if isinstance(value, tuple) else value


def _malformed() -> Iterator[tuple[str, bytes, dict[str, Most] | None]]:
    messages = _messages()
    good = pack(messages["activations-texts"]).data
    yield "empty", b"", None
    yield "magic", b"HC" + good[2:], None
    yield "version", good[:2] + b"\x01" + good[3:], None
    yield "kind", good[:3] + b"\x63" + good[4:], None
    yield "cut short", good[:-1], None
    yield "more behind the last field", good + b"\x00", None
    yield "field type", good[:4] + b"\x05" + good[5:], None
    yield "type of another field", good[:4] + b"\x00" + good[5:], None
    yield "dtype", good[:5] + b"\x0a" + good[6:], None
    yield "dimensions", good[:6] + b"\x09" + good[7:], None
    yield "a shape of more bytes than there are", good[:7] + b"\xff\xff\xff\xff" + good[11:], None
    yield "an empty shape that overflows", bytes.fromhex("48420204 02 00 03 00000000 ffffffff ffffffff"), None
    yield "a bool of 2", bytes.fromhex("48420204 04 01000000 09 01 01000000 02"), None
    yield "tensors without bytes", bytes.fromhex("48420207 03 00000100"), None
    yield "encoded slopes", bytes.fromhex("48420205 01 0700000000000000 04 00000000"), None
    yield "a role that holds nothing", good, {"activations": Most(80, shape=(5, 4))}
    yield "more bytes than the recipe allows", good, {"activations": Most(79)}
    yield "longer than the recipe allows", good, {"activations": Most(80, shape=(4, 5))}
    encoded = pack(messages["activations-encoded"]).data
    yield "more tensors than the recipe allows", encoded, {"activations": Most(1000, 1)}
    yield "tensors of more bytes than the recipe allows", encoded, {"activations": Most(30, 2)}
    masking = pack(messages["masking"]).data
    yield "more clients than the recipe allows", masking, {"masks": Most(15)}
    yield "keys where a recipe has none", masking, {"slopes": Most(100)}


def wire() -> Json:
    """Each kind of message as bytes; bytes that are none, and the field that is wrong."""
    cases = [
        {
            "name": name,
            "kinds": [kind.__name__ for kind in kinds_of(message)],
            "fields": [
                {field: told(getattr(part, field)) for field in FIELDS[type(part)]} for part in parts_of(message)
            ],
            "hex": pack(message).data.hex(),
        }
        for name, message in _messages().items()
    ]
    refused = []
    for name, data, most in _malformed():
        try:
            unpack(data, most)  # type: ignore[arg-type]
        except PeerError as error:
            limits = (
                None
                if most is None
                else {role: [m.bytes, m.tensors, m.shape and list(m.shape)] for role, m in most.items()}
            )
            refused.append({"name": name, "hex": data.hex(), "most": limits, "field": error.field})
        else:
            raise AssertionError(f"{name}: these bytes are a message")
    return {"messages": cases, "refused": refused}


def _matrix(rows: int, columns: int) -> Tensor:
    """Values of several sizes, a row of zeros, halves that are rounded to even, and what half precision can't hold."""
    matrix = direction_of(seed_for("matrix"), f"{rows}x{columns}", torch.zeros(rows, columns), law="gaussian")
    matrix[1] *= 1e-3
    matrix[2] = 0
    matrix[3] = torch.arange(columns) / 2 - columns / 4
    matrix[4, :4] = torch.tensor([1e5, -7e4, 3e-8, 1.00390625])
    return matrix


CHAINS: dict[str, list[Any]] = {
    "none": [],
    "cast": ["cast"],
    "cast-float16": [{"name": "cast", "dtype": "float16"}],
    "int8": ["int8"],
    "int4": ["int4"],
    "sign": [{"name": "sign", "feedback": False}],
    "cast-int8": ["cast", "int8"],
}


def codecs() -> Json:
    """What chains make of a matrix, and of it again; with feedback over three steps; steps that a client missed."""
    cases = []
    for name, chosen in CHAINS.items():
        for rows, columns in ((6, 13), (6, 256)) if name in ("int4", "sign") else ((6, 13),):
            made, where = parse(chosen, "codecs"), {"width": columns, "dtype": torch.float32, "where": "codecs"}
            samples, matrix = Samples((0,), (rows,)), _matrix(rows, columns)
            parts = make_sender(made, **where).encode(matrix, samples)  # type: ignore[arg-type]
            back = make_receiver(made, **where, folder=None).decode(parts, samples)  # type: ignore[arg-type]
            cases.append(
                {
                    "name": name,
                    "chain": chosen,
                    "matrix": shown(matrix),
                    "parts": [shown(part) for part in parts],
                    "decoded": {"sha256": digest(back), "first": shown(back[0])},
                }
            )
    sender = make_sender(parse(["sign"], "codecs"), width=16, dtype=torch.float32, where="codecs")
    steps = []
    for step in range(3):
        matrix = direction_of(seed_for("matrix"), f"feedback.{step}", torch.zeros(2, 16), law="gaussian")
        parts = sender.encode(matrix, Samples((0,), (2,)))
        steps.append({"matrix": shown(matrix), "parts": [shown(part) for part in parts]})
    return {"chains": cases, "sign_with_feedback": steps, "missed": _missed()}


def _missed() -> Json:
    """Three steps of 300 exact gradients as one message, each step padded by itself, and what it says."""
    made, where = parse(["sign"], "codecs"), {"width": 256, "dtype": torch.float32, "where": "codecs"}
    sender, receiver = make_sender(made, **where), make_receiver(made, **where, folder=None)  # type: ignore[arg-type]
    form, steps, decoded = VectorForm(300), [], []
    for step in range(3):
        row = direction_of(seed_for("matrix"), f"missed.{step}", torch.zeros(300), law="gaussian")
        steps.append(sender.encode(form.matrix(row), Samples((0,), (form.rows,))))
        decoded.append(form.tensor(receiver.decode(steps[-1], Samples((0,), (form.rows,)))))
    said: Any = Encoded(tuple(torch.cat(parts) for parts in zip(*steps, strict=True)))
    message = Both(History(7, torch.zeros(3, 0)), Exact(said))
    rows = [{"sha256": digest(row)} for row in decoded]
    return {"length": 300, "chain": ["sign"], "hex": pack(message).data.hex(), "rows": rows}


# What a sample is in a step: the same as before, a little or much changed; and for the whole batch, how it is sent.
_SCRIPT: tuple[tuple[tuple[int, ...], tuple[float, ...], bool], ...] = (
    ((3, 1, 2), (0, 0, 0), False),
    ((1, 3), (0, 0.02), False),
    ((2, 1), (0, 3), False),
    ((2, 1), (0, 0), True),  # a repeated upload: nobody remembers it
    ((4, 2, 3), (0, 0.02, 5), False),
    ((1, 4, 2), (0, 0, 0), False),
)
_TOKENS = {1: 2, 2: 1, 3: 3, 4: 2}
_WIDTH = 8


def _script() -> Iterator[tuple[Tensor, Samples]]:
    def noise(what: str, sample: int) -> Tensor:
        return direction_of(
            seed_for("samples"), f"{what}.{sample}", torch.zeros(_TOKENS[sample], _WIDTH), law="gaussian"
        )

    now = {sample: noise("start", sample) for sample in _TOKENS}
    for step, (ids, changes, repeated) in enumerate(_SCRIPT):
        for sample, change in zip(ids, changes, strict=True):
            now[sample] = now[sample] + change * noise(str(step), sample)
        rows = tuple(_TOKENS[sample] for sample in ids)
        yield torch.cat([now[sample] for sample in ids]), Samples(None if repeated else ids, rows)


def temporal() -> Json:
    """Conversations over a link that remembers samples: what is sent, what arrives, and the digests of both ends."""
    cases = {
        "bfloat16": ([{"name": "temporal", "projection": None}], 0.9),
        "float32-sketched": ([{"name": "temporal", "cache": "float32", "projection": 4}], 0.9),
        "int8-capped": ([{"name": "temporal", "cache": "int8", "cap_mb": 6e-5}, "int8"], 0.9),
        "every-other": ([{"name": "temporal", "every": 2}, "int8"], 0.9),
        "every-capped": ([{"name": "temporal", "cache": "int8", "cap_mb": 6e-5, "every": 3}], 0.9),
        "cast-behind": ([{"name": "temporal"}, {"name": "cast", "dtype": "float16"}], 0.95),
    }
    return {name: _conversation(chosen, threshold) for name, (chosen, threshold) in cases.items()}


def _conversation(chosen: list[Any], threshold: float) -> Json:
    made, where = parse(chosen, "codecs"), {"width": _WIDTH, "dtype": torch.float32, "where": "codecs"}
    sender, receiver = make_sender(made, **where), make_receiver(made, **where, folder=None)  # type: ignore[arg-type]
    assert isinstance(sender, TemporalSender)
    assert isinstance(receiver, TemporalReceiver)
    sender.threshold = threshold
    steps = []
    for matrix, samples in _script():
        parts: Parts = sender.encode(matrix, samples)
        arrived = receiver.decode(parts, samples)
        assert sender.cache.digest() == receiver.cache.digest()
        steps.append(
            {
                "ids": None if samples.ids is None else list(samples.ids),
                "rows": list(samples.rows),
                "matrix": shown(matrix),
                "similarity": [None if value != value else value for value in parts[0].tolist()],
                "parts": [shown(part) for part in parts[1:]],
                "arrived": shown(arrived),
                "digest": sender.cache.digest(),
            }
        )
    return {"chain": chosen, "threshold": threshold, "steps": steps}


_TOKEN = "0123456789abcdef"


def frames_and_streams() -> Json:
    """Each question and reply as a header; what is refused; and a frame on a stream."""
    own: dict[str, Any] = {"lineage": _TOKEN, "round": 3}
    questions = [
        frames.Prepare(run=_TOKEN, client=2, config={"model": {"cut": 2}}, label_names=("no", "yes"), weights="ab"),
        frames.Open(
            **own, ancestry=(frames.Ancestor(lineage=_TOKEN, rounds=2),), first=12, steps=4, cursor=9, measure=False
        ),
        frames.Open(
            **own,
            ancestry=(),
            first=12,
            steps=4,
            cursor=9,
            measure=True,
            evaluation=frames.Evaluation(step=12, loss=0.625, accuracy=81.25),
        ),
        frames.Open(
            **own,
            ancestry=(),
            first=12,
            steps=4,
            cursor=9,
            measure=True,
            evaluation=frames.Evaluation(step=12, loss=3.5, accuracy=None),
        ),
        frames.Say(**own, exchange=0),
        frames.Save(lineage=_TOKEN, rounds=4),
        frames.Save(lineage=_TOKEN, rounds=4, evaluation=frames.Evaluation(step=16, loss=0.5, accuracy=100)),
    ]
    replies = [
        frames.Ready(fits=False, takes=4096, rows=200),
        frames.Said(**own, exchange=0),
        frames.Done(
            **own,
            cursor=13,
            forward_passes=12,
            client_seconds=0.5,
            wire_seconds=0.25,
            peak_bytes=1 << 20,
            inference_peak_bytes=1 << 19,
            losses=(0.5, 0.25),
        ),
        frames.Saved(),
        frames.Refused(why="stale", error="a question came late or twice"),
    ]
    wrong = [
        "",
        "[]",
        '{"kind":"close"}',
        '{"kind":"say"}',
        '{"kind":"say","lineage":"0123456789ABCDEF","round":0,"exchange":0}',
        '{"kind":"say","lineage":"0123456789abcdef","round":-1,"exchange":0}',
        '{"kind":"say","lineage":"0123456789abcdef","round":0.5,"exchange":0}',
        '{"kind":"say","lineage":"0123456789abcdef","round":true,"exchange":0}',
        '{"kind":"say","lineage":"0123456789abcdef","round":4611686018427387904,"exchange":0}',
        '{"kind":"say","lineage":"0123456789abcdef","round":0,"exchange":0,"more":1}',
        '{"kind":"save","lineage":null,"rounds":1}',
        '{"kind":"save","lineage":"0123456789abcdef","rounds":1,"evaluation":true}',
        '{"kind":"open","lineage":"0123456789abcdef","ancestry":[{"lineage":"0"}],"round":0,"first":0,"steps":1,"cursor":0,"measure":false}',
        '{"kind":"open","lineage":"0123456789abcdef","ancestry":[],"round":0,"first":0,"steps":1,"cursor":0,"measure":0}',
        '{"kind":"open","lineage":"0123456789abcdef","ancestry":[],"round":0,"first":0,"steps":1,"cursor":0,"measure":true,"evaluation":[]}',
        '{"kind":"open","lineage":"0123456789abcdef","ancestry":[],"round":0,"first":0,"steps":1,"cursor":0,"measure":true,"evaluation":{"step":1,"loss":0.5}}',
        '{"kind":"open","lineage":"0123456789abcdef","ancestry":[],"round":0,"first":0,"steps":1,"cursor":0,"measure":true,"evaluation":{"step":-1,"loss":0.5,"accuracy":null}}',
        '{"kind":"open","lineage":"0123456789abcdef","ancestry":[],"round":0,"first":0,"steps":1,"cursor":0,"measure":true,"evaluation":{"step":1,"loss":"0.5","accuracy":null}}',
        '{"kind":"open","lineage":"0123456789abcdef","ancestry":[],"round":0,"first":0,"steps":1,"cursor":0,"measure":true,"evaluation":{"step":1,"loss":1e39,"accuracy":null}}',
        '{"kind":"open","lineage":"0123456789abcdef","ancestry":[],"round":0,"first":0,"steps":1,"cursor":0,"measure":true,"evaluation":{"step":1,"loss":0.5,"accuracy":100.5}}',
        '{"kind":"open","lineage":"0123456789abcdef","ancestry":[],"round":0,"first":0,"steps":1,"cursor":0,"measure":true,"evaluation":{"step":1,"loss":0.5,"accuracy":50,"more":1}}',
    ]
    for header in wrong:
        try:
            frames.read_question(header)
        except PeerError:
            continue
        raise AssertionError(f"{header} is a question")
    one = frames.frame(questions[-3], pack(Join(5)).data)
    written: list[bytes] = []
    stream.write_frame(_Sink(written), one)  # type: ignore[arg-type]
    return {
        "questions": [
            {"header": frames.frame(each).header, "fields": json.loads(frames.frame(each).header)} for each in questions
        ],
        "replies": [
            {"header": frames.frame(each).header, "fields": json.loads(frames.frame(each).header)} for each in replies
        ],
        "refused_questions": wrong,
        "stream": {"header": one.header, "body": one.body.hex(), "hex": b"".join(written).hex()},
    }


class _Sink:
    def __init__(self, written: list[bytes]) -> None:
        self.sendall = written.append


def batches() -> Json:
    """The rows of a client's batches, in the order of the reference."""
    cases = []
    for seed, rows, size in ((0, range(7), 3), (12345, range(100, 110), 4), (2**63 - 1, (5,), 2)):
        split = Split(torch.zeros(200, dtype=torch.int64), images=torch.zeros(200, 1))
        data = ClientData(split, np.array(rows), batch_size=size, seed=seed)
        orders = [data.batch(number).sample_ids.tolist() for number in range(8)]
        cases.append({"seed": seed, "rows": list(rows), "batch_size": size, "batches": orders})
    return {"cases": cases}


def sums() -> Json:
    """The pieces of a secure sum from secrets that are given, and whole conversations of one client."""
    drawn = _drawn("pieces")
    fixed, means = [], []
    for bits, largest, clients, share in ((64, 1024.0, 10, 1.0), (32, 8.0, 3, 1.0), (32, 64.0, 4, 3 / 7)):
        point = FixedPoint(bits, largest, clients)
        step = 1 / point.scale
        edges = [largest, -largest, 0.0, 0.5 * step, 1.5 * step, -0.5 * step, -2.5 * step, 1 / 3, -1e-3, 0.1]
        values = torch.tensor(edges, dtype=torch.float64).float()
        numbers = point.encode(values, "values", share)
        known = {"bits": bits, "range": largest, "clients": clients, "scale": point.scale.hex()}
        fixed.append(known | {"share": share.hex(), "values": shown(values), "numbers": shown(_signed(numbers))})
        counted = clients * share
        mean = point.mean(numbers + numbers, counted).float()
        means.append(known | {"total": shown(_signed(numbers + numbers)), "count": counted.hex(), "mean": shown(mean)})
    own, peer, key = primitives.KeyPair(next(drawn)), primitives.KeyPair(next(drawn)), next(drawn) + next(drawn)
    info = between(key, b"mask", 2, 5)
    text = next(drawn) + next(drawn)
    secret, powers = next(drawn), [next(drawn) for _ in range(3)]
    left = iter(powers)
    with patch("Crypto.Protocol.SecretSharing.rng", lambda size: next(left)):
        shares = primitives.split(secret, threshold=4, count=6)
    return {
        "fixed_point": fixed,
        "means": means,
        "pair": {
            "secrets": [own.secret.hex(), peer.secret.hex()],
            "public": [own.public.hex(), peer.public.hex()],
            "info": info.hex(),
            "shared": own.shared(peer.public, info).hex(),
        },
        "commitment": {"secret": secret.hex(), "commitment": primitives.commitment(secret).hex()},
        "derived": {
            "secret": secret.hex(),
            "info": b"own mask".hex(),
            "key": primitives.derived(secret, b"own mask").hex(),
        },
        "sealed": {"key": key.hex(), "text": text.hex(), "sealed": primitives.seal(key, text).hex()},
        "streams": [
            {"key": key.hex(), "numbers": shown(_signed(primitives.stream(key, 5, bits)))} for bits in (32, 64)
        ],
        "shares": {
            "secret": secret.hex(),
            "coefficients": [power.hex() for power in powers],
            "shares": [share.hex() for share in shares],
        },
        "conversations": {
            "alike": _sum("alike", SumRules(3, FixedPoint(64, 8.0, 3)), leave={}),
            "by rows": _sum("by rows", SumRules(3, FixedPoint(32, 8.0, 5), by_rows=True), leave={0: 1, 9: 2}),
        },
    }


def _drawn(name: str) -> Iterator[bytes]:
    """Secrets that everybody knows."""
    for number in count():
        yield sha256(f"halfback vectors {name} {number}".encode()).digest()[:16]


def _signed(numbers: Any) -> Tensor:
    return torch.from_numpy(numbers.copy().view(f"i{numbers.itemsize}"))


def _sum(name: str, rules: SumRules, *, leave: Mapping[int, int]) -> Json:
    """A sum of clients 0, 2, 5, 7, 9, of which some leave before an exchange; what client 2 says and is told."""
    clients, drawn = (0, 2, 5, 7, 9)[: rules.most], _drawn(name)
    said = {
        client: Both(Slopes(7, _values(3) * (place + 1)), Exact(_values(2) / (place + 3)))
        for place, client in enumerate(clients)
    }
    rows = {client: 10 * place + 3 for place, client in enumerate(clients)}
    noted: dict[int, list[bytes]] = {client: [] for client in clients}
    now = [0]

    def secret(*size: int) -> bytes:
        noted[now[0]].append(next(drawn))
        return noted[now[0]][-1]

    server, up, down = Sums(rules), [], []
    with patch("halfback.masking.participant.new_secret", secret), patch("Crypto.Protocol.SecretSharing.rng", secret):
        talks = {client: masked_talk(client, rows[client], said[client], rules) for client in clients}
        heard: dict[int, Any] = dict.fromkeys(clients)
        for exchange in range(4):
            messages: dict[int, Message] = {}
            for client in [client for client in heard if leave.get(client, 9) > exchange]:
                now[0] = client
                try:
                    messages[client] = talks[client].send(heard[client])
                except StopIteration as end:
                    messages[client] = end.value
            up.append(pack(messages[2]).data.hex())
            answers = server.answers(messages, rows)
            if answers is not None:
                heard = dict(answers)
                down.append(pack(heard[2]).data.hex())
    mean = server.mean(messages, [])[2]
    mine, powers = noted[2], rules.threshold - 1
    return {
        "rules": {
            "threshold": rules.threshold,
            "bits": rules.fixed.bits,
            "range": rules.fixed.range,
            "clients": rules.most,
            "by_rows": rules.by_rows,
        },
        "client": 2,
        "rows": rows[2],
        "secrets": [each.hex() for each in mine[:3]],
        "coefficients": [[each.hex() for each in mine[3:][:powers]], [each.hex() for each in mine[3:][powers:]]],
        "message": pack(said[2]).data.hex(),
        "said": up,
        "told": down,
        "mean": [shown(value) for part in parts_of(mean) for value in (part.values,)],  # type: ignore[union-attr]
    }


MAKERS = {
    "seeds": seeds,
    "directions": directions,
    "replay": replays,
    "wire": wire,
    "codecs": codecs,
    "temporal": temporal,
    "frames": frames_and_streams,
    "batches": batches,
    "sums": sums,
}


def main() -> None:
    """Writes every file."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in MAKERS.items():
        text = json.dumps(make(), ensure_ascii=False, indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{name}: {len(text)} characters", file=sys.stderr)


if __name__ == "__main__":
    main()
