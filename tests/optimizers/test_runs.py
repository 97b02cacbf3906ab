"""Runs by every optimiser: resumed to the bit, refused when a checkpoint is wrong, and what the server's peak is."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import halfback
from halfback import config as configuration
from halfback.assembly import build
from halfback.assembly.given import Given, settings_of
from halfback.config import RunConfig
from halfback.engine import checkpoint
from halfback.engine.federation import Federation
from halfback.errors import UserError
from halfback.models.adapters import hidden_matrices
from halfback.optimizers.table import TABLE
from halfback.testing import small


def full(name: str, model: Path, sentences: Path, algorithm: str = "split_lora", **changes: Any) -> RunConfig:
    """All weights of a Llama of three blocks are trained, by the same optimiser on both sides."""
    pytest.importorskip(TABLE[name].package or "torch")
    own = {side: {f"{side}__train": "full", f"{side}__optimizer": name} for side in ("bottom", "top")}
    scheduled = {"top__schedule": "cosine", "top__warmup": 2, "top__weight_decay": 0.1}
    return small.texts(algorithm, model, sentences, **own["bottom"], **own["top"], **scheduled, **changes)


MATRIX = {  # an entry of a hidden matrix' state, which is among the first parameters of the top
    "adamw8bit": "mean",
    "adalomo": "rows",
    "apollo": "length",
    "apollo_mini": "length",
    "foam": "square",
    "galore": "projection",
    "muon": "momentum_buffer",
    "adafactor": "row_var",
}


@pytest.mark.parametrize("name", list(TABLE))
def test_a_resumed_run_has_the_bits_of_an_unbroken_one_and_a_wrong_state_is_refused(
    name: str, tiny_llama: Path, sentences: Path, tmp_path: Path
) -> None:
    """Behind two rounds of two steps, read from the disk into parties that have done something else."""
    options = {"gap": 3} if "gap" in TABLE[name].options else {}
    config = full(name, tiny_llama, sentences, top__options=options)
    unbroken, resumed = small.built(config).federation, small.built(config).federation
    small.run(unbroken, 2, steps=2)
    tensors, values = unbroken.state()
    checkpoint.save(tmp_path, 2, tensors, values)
    found = checkpoint.load(tmp_path)
    assert found is not None
    small.run(resumed, 1)
    resumed.load_state(*found[1:])
    for each in (unbroken, resumed):
        small.run(each, 2, first=2, steps=2)
    small.assert_equal_states(unbroken, resumed)
    if name not in MATRIX:
        return
    key = next(key for key in tensors if key.startswith("top_optimizer.") and key.endswith(f".{MATRIX[name]}"))
    number = key.split(".")[1]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({key: tensors[key].reshape(1, *tensors[key].shape)}, f"tensor {key} is "),
        ({key: tensors[key].double()}, f"tensor {key} is torch.float64"),
        ({f"top_optimizer.{number}.other": torch.ones(())}, f"top_optimizer.{number}.other is there"),
        ({f"top_optimizer.0{number}.{MATRIX[name]}": tensors[key]}, "is there, and nothing has this name"),
        ({f"top_optimizer.-1.{MATRIX[name]}": tensors[key]}, "is there, and nothing has this name"),
    ]
    if (step := f"top_optimizer.{number}.step") in tensors:
        wrong += [({step: torch.tensor(float(count))}, f"tensor {step} is {count}") for count in (0, -3, 1 << 30)]
    for changes, says in wrong:
        with pytest.raises(UserError, match=says):
            resumed.load_state(tensors | changes, json.loads(json.dumps(values)))
    if step not in tensors:
        return  # Muon's momentum is all that it has, and a parameter that has taken no step has nothing
    with pytest.raises(UserError, match=f"tensor {key} is missing"):
        resumed.load_state({k: t for k, t in tensors.items() if k != key}, json.loads(json.dumps(values)))


METHODS: dict[str, dict[str, Any]] = {
    "split_lora": {},
    "ho_sfl": {},
    "ho_sfl-u-shape": {"model__head": 1},
    "split_lora-u-shape": {"model__head": 0},
    "ho_sfl-rows": {"algorithm__aggregation": "rows", "partition__name": "dirichlet", "partition__alpha": 0.3},
    "ho_sfl-one-pass": {"one_pass": True},
    "ho_sfl-cuts": {"model__cut": [1, 2]},
    "ho_sfl_pipelined": {},
    "hosl": {"algorithm__directions": 1},
    "sfl_v1": {},
    "sfl_v2": {},
    "cse_fsl": {},
    "fsl_sage": {},
    "ho_fl": {},
    "fedavg": {},
    "centralised": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_gradients_that_are_freed_one_by_one_change_no_bit(method: str) -> None:
    """Where a bound is set, infinite though it is, a norm of all gradients is taken, and all are kept for it."""
    algorithm = method.split("-")[0]
    needs = configuration.build_algorithm(small.images(algorithm)).needs
    moved = {} if needs.replays or needs.boundaries is not None else {"bottom__optimizer": "adalomo"}
    config = small.images(algorithm, top__optimizer="adalomo", **moved, **METHODS[method])
    fused, whole = small.built(config).federation, small.built(config).federation
    for each, clip in ((fused, None), (whole, math.inf)):
        clients = [each.client(number).party for number in range(1 if needs.agreement.pools else config.clients)]
        for descent in (each.server.party.top.descent, *(client.descent for client in clients)):
            if descent is not None:
                descent.clip = clip
    assert small.run(fused, 2, steps=2) == small.run(whole, 2, steps=2)
    small.assert_equal_states(fused, whole)


WIDTH, DEPTH = 256, 6


def peak(name: str, **changes: Any) -> int:
    """Of the server's tensors, with blocks that are all its own but the first, in a step after the first."""
    layers = [module for _ in range(DEPTH) for module in (nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh())]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*layers, nn.Linear(WIDTH, 2))
        rows = [(row, place % 2) for place, row in enumerate(torch.randn(12, WIDTH))]
    given = Given(model=model, data=halfback.Data(rows, rows[:2]))
    tree: dict[str, Any] = {"algorithm": {"name": "ho_sfl"}, "model": {"cut": 1}, "task": {}, "clients": 1}
    settings = settings_of(given) | {"sampled_clients": 1, "batch_size": 2, "bottom.train": "full", "top.train": "full"}
    settings |= {"top.optimizer": name, "device": "cpu", "bottom.optimizer": "sgd", "top.lr": 1e-3}
    federation: Federation = build(configuration.from_tree(tree, settings | changes), given=given).federation
    small.run(federation, 1)
    small.run(federation, 1, first=1, measure=True)
    return federation.server.meters.server_peak_bytes


def test_the_server_has_no_room_for_all_gradients_and_needs_none() -> None:
    """Of five matrices of 256 KiB: AdaLomo holds the gradient of one, and what its step takes, where SGD holds all."""
    matrix, others = 4 * WIDTH * WIDTH, 64 * 1024  # the rest: activations of two rows, the head, factors
    weights = DEPTH * matrix  # its own five, and θ: the server knows the agreed bottom too
    assert abs(peak("sgd") - (weights + 5 * matrix)) < others
    assert abs(peak("adalomo") - (weights + 2 * matrix)) < matrix / 2 + others
    assert abs(peak("adamw") - (weights + (2 * 5 + 5) * matrix)) < 5 * matrix + others, "its moments, and temporaries"
    assert peak("sgd", **{"top.clip": 1.0}) >= weights + 5 * matrix


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small.images("split_lora", top__optimizer="adamw8bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # so an import of it fails as if it were not installed
    says = r"^top.optimizer=adamw8bit: needs bitsandbytes; pip install 'halfback\[optimizers\]'$"
    with pytest.raises(UserError, match=says):
        small.built(config)


def test_what_a_hidden_matrix_is(tiny_llama: Path, sentences: Path) -> None:
    """Seven matrices in each block; not the embeddings, the head, or a norm's weights. Adapters are matrices too."""
    model = small.built(full("adamw", tiny_llama, sentences)).model
    assert len(hidden_matrices(model.bottom)) == 7
    assert len(hidden_matrices(model.top)) == 14
    assert not [name for name in hidden_matrices(model.whole) if "norm" in name or "embed" in name or "score" in name]
    adapted = small.built(small.texts("split_lora", tiny_llama, sentences, model__head=1)).model
    assert len({name for name in hidden_matrices(adapted.head) if "lora_" in name}) == 4  # A and B, of two targets
    assert hidden_matrices(nn.Linear(2, 2)) == set()
