"""What each algorithm must show on the wire: a row that breaks its signature is a bug."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from halfback import config as configuration
from halfback.algorithms import algorithms
from halfback.testing import small
from halfback.wire.messages import parts_of
from halfback.wire.packing import unpack

CLIENTS, ROUNDS, STEPS = 3, 2, 4
ASKED = CLIENTS * ROUNDS


@dataclass(frozen=True)
class Signature:
    """`uploads` of activations a step; whether a cut gradient comes `down`; messages with θ `up` and `down` a round."""

    uploads: float
    cut_gradient: bool
    weights: tuple[int, int] = (0, 0)
    slopes: tuple[float, float] = (0, 0)  # messages with slopes up and down a step
    losses: bool = False  # scalars down
    options: tuple[tuple[str, Any], ...] = ()


P = 2
DIRECTIONS = (("directions", P),)
EVERY = (("every", 2),)
BOTH_WAYS = (1, 1)
A_ROUND = 1 / STEPS
SIGNATURES = {
    "ho_sfl": Signature(1, True, slopes=BOTH_WAYS, options=DIRECTIONS),
    "ho_sfl_pipelined": Signature(1, True, slopes=BOTH_WAYS, options=DIRECTIONS),
    "hosl": Signature(2 * P + 1, False, losses=True, options=DIRECTIONS),
    "split_lora": Signature(1, True, BOTH_WAYS),
    "sfl_v1": Signature(1, True, BOTH_WAYS),
    "sfl_v2": Signature(1, True, BOTH_WAYS),
    "vanilla_split": Signature(1, True, (1, 0)),  # one way a hand-over
    "cse_fsl": Signature(1 / 2, False, BOTH_WAYS, options=EVERY),
    "fsl_sage": Signature(1 / 2, False, BOTH_WAYS, options=EVERY),
    "heron_sfl": Signature(1 / 2, False, BOTH_WAYS, options=EVERY),
    "mu_splitfed": Signature(3, False, BOTH_WAYS, losses=True),
    "zo_sfl": Signature(3, False, slopes=BOTH_WAYS, losses=True),
    "decomfl": Signature(0, False, slopes=(A_ROUND, A_ROUND)),
    "spry": Signature(0, False, slopes=BOTH_WAYS, options=DIRECTIONS),
    "ho_fl": Signature(0, False, BOTH_WAYS, slopes=(A_ROUND, 0), options=DIRECTIONS),
    "mezo": Signature(0, False),
    "fedavg": Signature(0, False, BOTH_WAYS),
    "centralised": Signature(0, False),
    "frozen_bottom": Signature(1, False),
}
ROLES = {
    "up": {"activations", "lengths", "labels", "sample_ids", "slopes", "weights", "steps", "framing"},
    "down": {"gradient", "slopes", "losses", "weights", "steps", "groups", "framing"},
}


def test_every_algorithm_has_a_signature() -> None:
    ours = {name for name, kind in algorithms().items() if kind.__module__.startswith("halfback.")}
    assert set(SIGNATURES) == ours


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_wire_shows(name: str) -> None:
    signature = SIGNATURES[name]
    options = {f"algorithm__{option}": value for option, value in signature.options}
    config = small.images(name, clients=CLIENTS, sampled_clients=CLIENTS, batch_size=2, task__train_rows=60, **options)
    simulation = small.built(config).federation
    said = {"up": list[str](), "down": list[str]()}

    def listening(client: int, direction: str, data: bytes) -> None:
        said[direction] += [type(part).__name__ for part in parts_of(unpack(data))]

    simulation.tap = listening
    small.run(simulation, ROUNDS, steps=STEPS)
    up, down = (Counter(said[way]) for way in ("up", "down"))
    assert up["Activations"] == signature.uploads * ASKED * STEPS
    assert down["CutGradient"] == (ASKED * STEPS if signature.cut_gradient else 0)
    counted = simulation.server.ledger.bytes_by_kind
    carries_weights = [
        sum(parts[kind] for kind in ("Weights", "HandOver") if kind in counted[way])
        for way, parts in (("up", up), ("down", down))
    ]
    assert carries_weights == [ASKED * times for times in signature.weights]
    assert (up["Slopes"], down["Slopes"]) == tuple(ASKED * STEPS * times for times in signature.slopes)
    assert ("Losses" in down) is signature.losses
    for way, roles in ROLES.items():
        assert {role for by_role in counted[way].values() for role in by_role} <= roles
    if name in ("mezo", "centralised"):
        assert said == {"up": [], "down": []}
        assert simulation.server.ledger.total("up") == simulation.server.ledger.total("down") == 0


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one random 32×32 colour image for each of ten classes."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    dice = np.random.default_rng(0)
    for label in range(10):
        folder = tmp_path / "pictures" / f"class-{label}"
        folder.mkdir(parents=True)
        Image.fromarray(dice.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "picture.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(("name", "kind", "transfers"), [("sfl_v2", "Weights", 30), ("vanilla_split", "HandOver", 15)])
def test_the_weights_of_resnet18_to_the_last_byte(name: str, kind: str, transfers: int, pictures: Path) -> None:
    """5 clients × 3 rounds, cut in the middle: 78.39 MiB for SFL-V2 and 39.20 MiB for the relay.

    These published figures count the batch-norm buffers too, which never change here and stay where they are.
    """
    tree: dict[str, Any] = {
        "algorithm": {"name": name},
        "task": {"name": "images", "train": str(pictures), "validation": str(pictures)},
        "model": {"name": "resnet18", "cut": 4},
    }
    changes = {"clients": 5, "sampled_clients": 5, "batch_size": 1, "bottom.train": "full", "top.train": "full"}
    built = small.built(configuration.from_tree(tree, small.SMALL | changes))
    small.run(built.federation, 3)
    parameters = list(built.federation.server.party.agreed.replica.parameters.values())
    values = sum(parameter.numel() * 4 for parameter in parameters)
    # A header, the field's type and count; of each tensor dtype and number of dimensions, and a word a dimension.
    framing = 4 + 1 + 4 + sum(2 + 4 * parameter.ndim for parameter in parameters)
    counted = built.federation.server.ledger.bytes_by_kind
    entries = [counted[way][kind] for way in ("up", "down") if kind in counted[way]]
    assert sum(entry["weights"] for entry in entries) == transfers * values
    assert sum(sum(entry.values()) for entry in entries) == transfers * (values + framing)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in built.model.bottom.buffers())
    assert values + buffers == 2_740_048
    assert round(transfers * (values + buffers) / 2**20, 2) == {30: 78.39, 15: 39.20}[transfers]
