"""How a model that a run began from is called where others read it: no path of this machine says anything there."""

import re
from pathlib import Path

from halfback.data.options import GIVEN
from halfback.models.packages import packaged_models
from halfback.models.resnet import is_resnet_name

_ON_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_path(name: str) -> bool:
    """Whether a model's name says where it is on this machine."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).exists()


def shown_name(name: str) -> str:
    """A model's name as somebody else may read it: of a path, where it ends."""
    return Path(name).name if is_path(name) else name


def hub_name(name: str) -> str | None:
    """A model's name on the Hugging Face hub; None where it isn't known to be there."""
    if (package := packaged_models().get(name)) is not None:
        return package.hub
    own = name == GIVEN or is_resnet_name(name) or is_path(name) or name.endswith(".safetensors")
    return name if not own and _ON_HUB.fullmatch(name) else None
