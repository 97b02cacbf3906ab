"""The registered algorithms: ours below, and those that other packages declare under `halfback.algorithms`."""

from importlib.metadata import entry_points

from halfback.algorithms.frozen_bottom import FrozenBottom
from halfback.algorithms.ho_sfl import HoSfl
from halfback.algorithms.protocol import Algorithm
from halfback.algorithms.split_lora import SplitLora
from halfback.algorithms.zo_sfl import ZoSfl

_OURS: dict[str, type[Algorithm]] = {
    "ho_sfl": HoSfl,
    "split_lora": SplitLora,
    "zo_sfl": ZoSfl,
    "frozen_bottom": FrozenBottom,
}


def algorithms() -> dict[str, type[Algorithm]]:
    """Name → algorithm: a frozen dataclass whose fields are its options."""
    found = dict(_OURS)
    for entry in entry_points(group="halfback.algorithms"):
        found.setdefault(entry.name, entry.load())
    return found
