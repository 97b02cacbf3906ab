"""A plan beside a run: bytes to the byte, and the peak of a client, before anything has run."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers

from halfback.config import RunConfig
from halfback.errors import UserError
from halfback.planning.work import Workload
from halfback.testing import small
from halfback.testing.texts import saved, sentences, tiny_bert, tokenizer_with

__all__ = ["sentences", "tiny_bert"]

STEPS = 4
SECURE = {"secure__sum": True, "clients": 4, "sampled_clients": 3}
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
    "split_lora lean": {"bottom__optimizer": "foam"},
    "split_lora batch norm": {"bottom__batch_norm": "train"},
    "vanilla_split": {},
    "cse_fsl": {},
    "heron_sfl": {"steps_per_round": 2},
    "mu_splitfed": {},
    "decomfl": {"steps_per_round": 2},
    "spry": {},
    "fedavg": {},
    "ho_sfl secure": {"algorithm__directions": 3, "algorithm__exact_blocks": 1, "steps_per_round": 2, **SECURE},
    "ho_sfl_pipelined secure": {"steps_per_round": 2, **SECURE},
    "decomfl secure": {"steps_per_round": 2, "secure__bits": 32, **SECURE},
    "fedavg secure": {"secure__bits": 32, **SECURE},
    "heron_sfl secure": {"steps_per_round": 2, **SECURE},
    "fedavg batch norm": {"bottom__batch_norm": "train", "top__batch_norm": "train"},
    "fedavg one by one": {"bottom__optimizer": "adalomo"},
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
    # Where the layers of a convolutional network are shared out among the clients, a plan lacks 15 % of what it takes:
    # it does not know which layers have tangents. Held by one client alone they are planned to 0.1 %.
    near = 0.16 if built.ground.algorithm.needs.agreement.groups else 0.1
    assert work.peak_bytes == pytest.approx(server.meters.client_peak_bytes, rel=near)


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    check(of_images(), small.images(name.split()[0], **IMAGES[name]))


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, of_texts: Workload, tiny_bert: Path, sentences: Path) -> None:
    check(of_texts, small.texts(name.split()[0], tiny_bert, sentences, **TEXTS[name]))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model whose output weights are its embedding, which is most of it."""
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_with(["<pad>", "<unk>", "</s>"]), pad_token="<pad>", unk_token="<unk>"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 32}
    config = transformers.LlamaConfig(
        vocab_size=20_000, num_hidden_layers=3, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0, **sizes
    )
    return saved(tmp_path_factory.mktemp("models") / "tied", transformers.LlamaForCausalLM, config, fast)


def test_weights_that_are_tied_count_once_and_a_whole_language_model_has_tangents(tied: Path, sentences: Path) -> None:
    words = {"task__template": "{text} It is", "task__verbaliser": ["awful", "great"], "lora__targets": ["q_proj"]}
    of: Callable[..., RunConfig] = lambda name, **changes: small.texts(name, tied, sentences, **words, **changes)  # noqa: E731
    workload = Workload(of("ho_sfl"), steps=STEPS)
    for config in (of("ho_sfl", model__head=0), of("mezo"), of("spry", sampled_clients=1), of("fedavg")):
        check(workload, config)
    with pytest.raises(UserError, match="cut is 3, and behind it nothing would be trained"):
        workload.work(of("ho_sfl", model__cut=3))


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
