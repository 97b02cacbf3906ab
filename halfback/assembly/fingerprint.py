"""What a run is about, in a few words: its rows as they are encoded, who has them, and the weights that it begins from.

A checkpoint keeps these, so that a run that goes on from it is refused where a file has another content by now. They
are for accidents, not against forgery: who can change a checkpoint can change them too.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from xxhash import xxh3_128

from halfback.data.batches import ClientData
from halfback.data.encode import EncodedTask
from halfback.engine.tensors import feed
from halfback.errors import UserError

_MEANS = {
    "model.name": "the weights or the settings of the model that {run} began from are others",
    "task.train": "the training rows of {run}, as the model's tokenizer encodes them, are others",
    "task.validation": "the validation rows of {run}, as the model's tokenizer encodes them, are others",
    "partition": "the clients of {run} have other rows",
}


def fingerprint(whole: nn.Module, task: EncodedTask, sources: Sequence[ClientData]) -> dict[str, str]:
    """Setting → digest of what it stands for; `whole` is the model before anything is trained in this run.

    Of a model of which a part is held, that part counts.

    All bytes count, of weights once where layers share them; a second for two gigabytes or more.
    """
    prompts = [(prompt.tokens, prompt.references) for prompt in task.prompts]
    return {
        "model.name": of_model(whole),
        "task.train": _digest(task.train.contents().items(), [task.objective, task.label_names]),
        "task.validation": _digest(task.validation.contents().items(), prompts),
        "partition": _digest((str(n), torch.from_numpy(source.rows)) for n, source in enumerate(sources)),
    }


def of_model(whole: nn.Module) -> str:
    """The digest of a model's weights, as far as they are held, and of its settings."""
    weights = [(n, t) for n, t in (*whole.named_parameters(), *whole.named_buffers()) if not t.is_meta]
    return _digest(weights, _settings(whole))


def check_same(kept: Mapping[str, str], now: Mapping[str, str], run: object) -> None:
    """Refuses to go on with a `run` over anything but what it began with; UserError names the setting."""
    for setting, means in _MEANS.items():
        if setting in kept and kept[setting] != now[setting]:
            raise UserError(f"{setting} has changed: {means.format(run=run)}; put back what it began with, or run anew")


def _settings(whole: Any) -> Any:
    """Those of a model that differ from its family's, without where it was loaded from and by which version."""
    tell = getattr(whole.config, "to_diff_dict", dict)
    return {key: value for key, value in tell().items() if key not in ("_name_or_path", "transformers_version")}


def _digest(tensors: Iterable[tuple[str, Tensor]], also: Any = None) -> str:
    digest = xxh3_128(json.dumps(also, sort_keys=True, default=str).encode())
    for name, tensor in tensors:
        feed(digest, name, tensor)
    return digest.hexdigest()
