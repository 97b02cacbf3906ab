"""A plan beside a run: bytes to the byte, and the peak of a client, before anything has run."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from halfback.config import RunConfig
from halfback.errors import UserError
from halfback.planning.work import Workload
from halfback.testing import small
from halfback.testing.texts import sentences, tiny_bert

__all__ = ["sentences", "tiny_bert"]

STEPS = 4
IMAGES: dict[str, dict[str, Any]] = {
    "ho_sfl": {"algorithm__directions": 3, "bottom__optimizer": "adamw"},
    "ho_sfl exact": {"algorithm__exact_blocks": 1, "model__cut": 2, "bottom__optimizer": "adamw"},
    "ho_sfl exact signs": {
        "algorithm__exact_blocks": "all",
        "model__cut": 2,
        "codecs__slopes_up": ["sign"],
        "codecs__slopes_down": ["sign"],
    },
    "ho_sfl forward_ad": {"algorithm__estimator": "forward_ad"},
    "ho_sfl head": {"model__head": 1},
    "ho_sfl rows": {"client__rows_at_once": 3, "model__cut": 2},
    "ho_sfl mixed": {"model__cut": [1, 2]},
    "ho_sfl_pipelined": {"steps_per_round": 2, "codecs__activations_up": ["int8"]},
    "zo_sfl": {"algorithm__directions": 2, "codecs__activations_up": ["topk"]},
    "hosl": {"algorithm__directions": 2},
    "frozen_bottom": {},
    "split_lora": {"bottom__optimizer": "adamw"},
    "vanilla_split": {},
    "cse_fsl": {},
    "heron_sfl": {"steps_per_round": 2},
    "mu_splitfed": {},
    "decomfl": {"steps_per_round": 2},
    "spry": {},
    "fedavg": {},
    "mezo": {},
}
TEXTS: dict[str, dict[str, Any]] = {
    "ho_sfl": {"algorithm__directions": 2, "bottom__optimizer": "adamw"},
    "ho_sfl exact": {"algorithm__exact_blocks": 1, "model__cut": 2},
    "ho_sfl head": {"model__head": 0},
    "split_lora": {"codecs__gradient_down": ["int8"]},
    "heron_sfl": {},
}


@cache
def of_images() -> Workload:
    return Workload(small.images("ho_sfl"), steps=STEPS)


@pytest.fixture(scope="module")
def of_texts(tiny_bert: Path, sentences: Path) -> Workload:
    return Workload(small.texts("ho_sfl", tiny_bert, sentences), steps=STEPS)


def check(workload: Workload, config: RunConfig) -> None:
    """Of a tiny model's megabyte, codecs and what lives between two names are more than of a large one's."""
    work, built = workload.work(config), small.built(config)
    small.run(built.federation, STEPS // config.steps_per_round, steps=config.steps_per_round, measure=True)
    server = built.federation.server
    clients = STEPS * (1 if built.ground.algorithm.needs.agreement.pools else config.sampled_clients)
    assert work.up_bytes == pytest.approx(server.ledger.total("up") / clients, rel=1e-12)
    assert work.down_bytes == pytest.approx(server.ledger.total("down") / clients, rel=1e-12)
    assert work.peak_bytes == pytest.approx(server.meters.client_peak_bytes, rel=0.1)


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    check(of_images(), small.images(name.split()[0], **IMAGES[name]))


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, of_texts: Workload, tiny_bert: Path, sentences: Path) -> None:
    check(of_texts, small.texts(name.split()[0], tiny_bert, sentences, **TEXTS[name]))


def test_what_depends_on_values_is_a_bound_and_says_so() -> None:
    config = small.images("ho_sfl", codecs__activations_up=["temporal", "int8"], batch_size=32, clients=2)
    work, built = of_images().work(config), small.built(config)
    small.run(built.federation, STEPS)
    assert work.estimated
    assert work.up_bytes >= built.federation.server.ledger.total("up") / (STEPS * config.sampled_clients)


def test_a_variant_of_another_task_or_a_cut_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="task"):
        of_images().work(small.images("ho_sfl", task__train_rows=100))
    with pytest.raises(UserError, match="cut"):
        of_images().work(small.images("ho_sfl", model__cut=9))
