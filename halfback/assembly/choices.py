"""What a configuration chooses by name: the algorithm, the codecs, what sets their thresholds, and the device."""

from collections.abc import Mapping

import torch

from halfback.codecs import Codec, parse
from halfback.codecs.temporal import Temporal
from halfback.config import RunConfig, build_algorithm
from halfback.controllers import build as start_controller
from halfback.controllers import read_options
from halfback.controllers.protocol import Controller
from halfback.data.augment import parse as parse_augmentation
from halfback.errors import UserError, of_extra
from halfback.masking.fixed_point import FixedPoint
from halfback.masking.rules import SumRules
from halfback.parties.protocol import Algorithm
from halfback.zeroth.directions import seed_for


def check(config: RunConfig) -> tuple[Algorithm, dict[str, tuple[Codec, ...]], Controller | None]:
    """The chosen algorithm, the codecs by link, and what sets the thresholds.

    Raises:
        UserError: an option of one of them has a value that is not allowed.
    """
    parse_augmentation(config.task.augment)
    codecs = {link: parse(chosen, f"codecs.{link}") for link, chosen in config.codecs if chosen}
    return build_algorithm(config), codecs, _controller(config, codecs)


def device_of(config: RunConfig) -> torch.device:
    """The device that a recipe names, with the threads that it gives an operation, in this process; or UserError."""
    name = config.device
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda': no CUDA device is here; use device=cpu or device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def one_pass_of(config: RunConfig, device: torch.device) -> bool:
    """Whether a cohort goes through the model as one batch where one process plays everybody."""
    if config.one_pass is None:
        return device.type == "cuda" and config.top.batch_norm == "frozen"
    return config.one_pass


def sums_of(config: RunConfig) -> SumRules | None:
    """How a cohort adds up what its clients say of θ; None where the server hears each.

    Raises:
        UserError: what it needs is not installed.
    """
    secure, cohort = config.secure, config.sampled_clients
    if not secure.sum:
        return None
    with of_extra("secure"):
        import halfback.masking.primitives  # noqa: F401  # before anything is trained
    by_rows = build_algorithm(config).needs.agreement.aggregation == "rows"
    return SumRules(secure.threshold_of(cohort), FixedPoint(secure.bits, secure.range, cohort), by_rows)


def _controller(config: RunConfig, codecs: Mapping[str, tuple[Codec, ...]]) -> Controller | None:
    """What sets the thresholds; None where no link reuses anything."""
    read_options(config.controller.name, config.controller.options())
    links = sorted(link for link, chain in codecs.items() if isinstance(chain[0], Temporal))
    if not links:
        return None
    seed = seed_for(config.seed, "controller")
    return start_controller(config.controller.name, config.controller.options(), links, seed)
