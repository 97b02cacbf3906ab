"""The registered algorithms: ours below, and those that other packages declare under `halfback.algorithms`."""

from halfback.algorithms.centralised import Centralised
from halfback.algorithms.cse_fsl import CseFsl
from halfback.algorithms.decomfl import Decomfl
from halfback.algorithms.fedavg import Fedavg
from halfback.algorithms.frozen_bottom import FrozenBottom
from halfback.algorithms.fsl_sage import FslSage
from halfback.algorithms.heron_sfl import HeronSfl
from halfback.algorithms.ho_fl import HoFl
from halfback.algorithms.ho_sfl import HoSfl
from halfback.algorithms.ho_sfl_pipelined import HoSflPipelined
from halfback.algorithms.hosl import Hosl
from halfback.algorithms.mezo import Mezo
from halfback.algorithms.mu_splitfed import MuSplitfed
from halfback.algorithms.sfl_v1 import SflV1
from halfback.algorithms.sfl_v2 import SflV2
from halfback.algorithms.split_lora import SplitLora
from halfback.algorithms.spry import Spry
from halfback.algorithms.vanilla_split import VanillaSplit
from halfback.algorithms.zo_sfl import ZoSfl
from halfback.parties.protocol import Algorithm
from halfback.registry import Registry

_OURS: dict[str, type[Algorithm]] = {
    "ho_sfl": HoSfl,
    "ho_sfl_pipelined": HoSflPipelined,
    "hosl": Hosl,
    "split_lora": SplitLora,
    "sfl_v1": SflV1,
    "sfl_v2": SflV2,
    "vanilla_split": VanillaSplit,
    "cse_fsl": CseFsl,
    "fsl_sage": FslSage,
    "heron_sfl": HeronSfl,
    "mu_splitfed": MuSplitfed,
    "zo_sfl": ZoSfl,
    "decomfl": Decomfl,
    "spry": Spry,
    "mezo": Mezo,
    "ho_fl": HoFl,
    "fedavg": Fedavg,
    "centralised": Centralised,
    "frozen_bottom": FrozenBottom,
}


ALGORITHMS: Registry[type[Algorithm]] = Registry("halfback.algorithms", _OURS)
algorithm = ALGORITHMS.named
"""A decorator: `@algorithm("my_method")` on a frozen dataclass, whose fields are the method's options."""


def algorithms() -> dict[str, type[Algorithm]]:
    """Name → algorithm: a frozen dataclass whose fields are its options."""
    return dict(ALGORITHMS)
