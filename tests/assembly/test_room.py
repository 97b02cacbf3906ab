"""Batches that go through a device's part in rows, and a budget of memory from which their number is chosen."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.errors import UserError
from halfback.testing import small
from halfback.testing.texts import saved, tokenizer_with


@pytest.fixture(scope="module")
def wide_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One 64 wide, with texts of 7 to 62 tokens."""
    return _wide(tmp_path_factory.mktemp("wide"), width=64, tokens=(7, 62))


def _wide(folder: Path, *, width: int, tokens: tuple[int, int]) -> Path:
    """A folder with a random BERT of three blocks, and a table of 64 texts for it."""
    dice = random.Random(0)
    own = tokenizer_with(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]")
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 3, "num_attention_heads": 2}
    saved(folder, BertForSequenceClassification, BertConfig(vocab_size=len(fast), **sizes), fast)  # type: ignore[arg-type]
    words = ("the", "film", "is", "a", "plot", "very")
    texts = (" ".join(dice.choices(words, k=dice.randint(*tokens) - 3)) for _ in range(64))
    rows = [f"{text} {'great,positive' if row % 2 else 'dull,negative'}" for row, text in enumerate(texts)]
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


def _config(folder: Path, algorithm: str = "ho_sfl", **changes: Any) -> RunConfig:
    shape = {"clients": 2, "sampled_clients": 2, "batch_size": 16, "model__cut": 2}
    return small.texts(algorithm, folder, folder / "rows.csv", **(shape | changes))


def _peaks(run: Built, rounds: int) -> list[int]:
    """The metered peak of each round, in bytes."""
    meters, peaks = run.federation.server.meters, []
    for number in range(rounds):
        meters.client_peak_bytes = 0
        small.run(run.federation, 1, first=number, measure=True)
        peaks.append(meters.client_peak_bytes)
    return peaks


def _least(config: RunConfig, clients: tuple[int, ...] = (0, 1)) -> float:
    """The smallest budget for all of these clients, in megabytes, as refusals name it."""
    least = 0.0
    for client in clients:
        with pytest.raises(UserError, match=rf"^client\.memory=0\.01: client {client} can't take a step ") as refused:
            small.alone(config, client)
        found = re.search(r"what it holds .* with one row at a time ([0-9.]+) or more is needed$", str(refused.value))
        assert found
        least = max(least, float(found[1]))
    return least


@pytest.mark.parametrize("estimator", ["forward", "forward_ad"])
@pytest.mark.parametrize("algorithm", ["ho_sfl", "heron_sfl"])
def test_rows_at_once_change_rounding_alone(wide_bert: Path, algorithm: str, estimator: str) -> None:
    """Four steps: the losses are those of whole batches, and no step of the two is another number of passes."""
    changes = {"algorithm__estimator": estimator, "algorithm__radius": 1e-3, "bottom__lr": 1e-3}
    runs = [small.built(_config(wide_bert, algorithm, client__rows_at_once=rows, **changes)) for rows in (None, 3)]
    losses = [small.run(run.federation, 4) for run in runs]
    # Float32 rounding of z over a radius of 1e-3 is 1e-4 of a slope, and a slope moves θ by 1e-3 of itself.
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    passes = [run.federation.server.meters.forward_passes for run in runs]
    assert passes[0] == passes[1] > 0


def test_the_server_evaluates_whole_batches(wide_bert: Path) -> None:
    run = small.built(_config(wide_bert, client__rows_at_once=1))
    small.run(run.federation, 1)
    assert run.model.bottom.rows_at_once is None


EXACT = {"algorithm__exact_blocks": "all", "algorithm__directions": 0, "bottom__lr": 1e-3}
EXACT |= {f"codecs__{link}": [codec] for link, codec in (("activations_up", "int8"), ("slopes_up", "sign"))}
EXACT |= {"codecs__slopes_down": ["sign"]}


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("ho_sfl", {}),
        ("ho_sfl", {"bottom__train": "full", "bottom__optimizer": "adamw"}),
        ("ho_sfl", EXACT),
        ("ho_sfl", {"model__head": 0, "model__cut": [1, 2]}),
        ("frozen_bottom", {"model__head": 0}),
        ("zo_sfl", {}),
        ("heron_sfl", {}),
    ],
)
def test_a_budget_is_kept_in_every_round(wide_bert: Path, algorithm: str, changes: dict[str, Any]) -> None:
    """The smallest one, and one halfway to what whole batches take."""
    least = _least(_config(wide_bert, algorithm, client__memory=0.01, **changes))
    whole = max(_peaks(small.built(_config(wide_bert, algorithm, **changes)), 2)) / 1e6
    for budget in (least, (least + whole) / 2):
        run = small.built(_config(wide_bert, algorithm, client__memory=budget, **changes))
        run.clients.settle()
        assert max(_peaks(run, 2)) <= budget * 1e6


def test_a_budget_is_kept_by_who_takes_many_missed_rows_of_exact_gradients(wide_bert: Path) -> None:
    """Of 2^20 values at most; in a simulation θ has taken them already, so here nothing is replayed."""
    signs = EXACT | {"bottom__train": "full", "bottom__optimizer": "adamw"}
    few = {"clients": 2, "sampled_clients": 1, "batch_size": 2, "steps": 12, "steps_per_round": 1}
    config = _config(wide_bert, client__memory=0.01, **signs, **few)
    budget = _least(config)
    run = small.built(_config(wide_bert, client__memory=budget, **signs, **few))
    run.clients.settle()
    small.run(run.federation, 1, steps=9)
    late = next(number for number in (0, 1) if number not in run.federation.server.cohort(0))
    number = next(number for number in range(1, 99) if run.federation.server.cohort(number) == [late])
    run.federation.server.meters.client_peak_bytes = 0
    small.run(run.federation, 1, first=number, measure=True)
    assert 0.7 * budget * 1e6 <= run.federation.server.meters.client_peak_bytes <= budget * 1e6


def test_more_memory_is_more_rows_and_enough_is_all(wide_bert: Path) -> None:
    least = _least(_config(wide_bert, client__memory=0.01))
    rows = [small.alone(_config(wide_bert, client__memory=least * more), 0).rows_at_once or 0 for more in (1, 1.3, 9)]
    assert 1 <= rows[0] < rows[1] < rows[2] == 16


def test_a_client_alone_chooses_what_it_chooses_among_others(wide_bert: Path) -> None:
    """Looking for it changes nothing that a checkpoint holds."""
    config = _config(wide_bert, client__memory=1.3 * _least(_config(wide_bert, client__memory=0.01)))
    run, other = small.built(config), small.built(config)
    run.clients.settle()
    for number in (0, 1):
        assert small.alone(config, number).rows_at_once == run.federation.client(number).rows_at_once
        other.federation.client(number)
    small.assert_equal_states(run.federation, other.federation)
    assert all(not loss for loss in (run.federation.client(0).party.losses, other.federation.client(0).party.losses))


_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
import torch
from halfback.parties.holdings import Round
from halfback.telemetry.meters import MemoryMeter
from halfback.testing import small
from halfback.wire.messages import Activations, CutGradient, History, Join, Slopes

torch.set_num_threads(1)
folder, budget, allowance = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
common = dict(clients=1, sampled_clients=1, batch_size=64, model__cut=2)
few = small.alone(small.texts("ho_sfl", folder, folder / "rows.csv", **common, client__memory=budget), 0)
side = small.alone(small.texts("ho_sfl", folder, folder / "rows.csv", **common), 0)
rows, side.rows_at_once = few.rows_at_once, few.rows_at_once if sys.argv[4] == "chosen" else None
del few
far = side._links.far(0)
lines = Path("/proc/self/status").read_text().splitlines()
has = int(next(line for line in lines if line.startswith("VmData")).split()[1]) * 1024
own = MemoryMeter(side.resident()).peak_bytes
limit = int(has - own + (budget + allowance) * 1e6)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
talk, answer = side.converse(Round(0, 1, 0), measure_memory=False), None
while True:
    try:
        said = far.receive(talk.send(answer))
    except StopIteration:
        break
    match said:
        case Join():
            reply = History(0, torch.zeros(0, 2))
        case Activations():
            reply = CutGradient(torch.full_like(said.hidden, 1e-3))
        case Slopes():
            reply = said
    del said
    answer = far.send(reply).data
    del reply
print("finished", rows)
"""


def test_a_step_in_a_process_that_is_given_the_budget(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The system refuses memory beyond what the process has without the client's tensors, the budget and an allowance.

    The allowance is for what no meter counts: a message as bytes beside its tensor, on both sides, as the server is
    played here (twice 4 MB), matrix products' own scratch, and Python.
    """
    folder = _wide(tmp_path_factory.mktemp("limited"), width=256, tokens=(62, 62))
    command = [sys.executable, "-c", _UNDER_A_LIMIT, str(folder), "24", "14"]
    # Each tensor is a mapping of its own, which its end gives back to the system.
    calm = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    in_rows, whole = (
        subprocess.run([*command, how], capture_output=True, text=True, env=calm, timeout=100)
        for how in ("chosen", "whole")
    )
    assert re.match(r"finished ([1-9]|[1-5][0-9])\n", in_rows.stdout), in_rows.stderr
    assert whole.returncode != 0
    assert "memory" in whole.stderr.splitlines()[-1].lower()
