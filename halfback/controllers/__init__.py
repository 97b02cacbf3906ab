"""The registered controllers: ours below, and those that other packages declare under `halfback.controllers`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from halfback.controllers.bang_bang import BangBangOptions
from halfback.controllers.ddpg import DdpgOptions
from halfback.controllers.fixed import FixedOptions
from halfback.controllers.protocol import Controller, Options
from halfback.errors import UserError, offer
from halfback.registry import Registry

CONTROLLERS: Registry[type[Options]] = Registry(
    "halfback.controllers", {"fixed": FixedOptions, "bang_bang": BangBangOptions, "ddpg": DdpgOptions}
)
controller = CONTROLLERS.named
"""A decorator: `@controller("my_rule")` on a frozen dataclass, whose fields are the rule's options."""


def controllers() -> dict[str, type[Options]]:
    """Name → rule: a frozen dataclass whose fields are its options."""
    return dict(CONTROLLERS)


def read_options(name: str, options: Mapping[str, Any]) -> Options:
    """The options of a rule from plain values, checked.

    Raises:
        UserError: an unknown rule or option, or a value that is not allowed; names the nearest, or what is allowed.
    """
    known = controllers()
    if name not in known:
        raise UserError(f"controller {name!r} is unknown; {offer(name, known)}")
    kind: Any = known[name]
    allowed = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in allowed:
            raise UserError(f"key 'controller.{option}' is unknown to {name}; {offer(option, allowed)}")
    try:
        return TypeAdapter(kind).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UserError(f"controller.{path}={first['input']!r}: {first['msg']}") from None


def build(name: str, options: Mapping[str, Any], links: Sequence[str], seed: int) -> Controller:
    """A controller of `links` at the start of a run; whatever it draws follows from `seed`.

    Raises:
        UserError: an unknown rule or option, a value that is not allowed, no link, or a missing optional package.
    """
    chosen = read_options(name, options)
    if not links:
        raise UserError(f"controller {name!r}: no link of this run has the temporal codec, so there is no threshold")
    return chosen.start(links, seed)
