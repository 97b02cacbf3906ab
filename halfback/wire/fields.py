"""What the wire knows of the fields of messages: their roles, and what they may hold."""

from dataclasses import fields
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from halfback.wire.messages import KINDS, Encoded, Part, Role


class Field(NamedTuple):
    """What the wire knows of a field.

    Attributes:
        role: what it holds, whatever the algorithm.
        types: the Python types that it may be of.
    """

    role: Role
    types: tuple[type, ...]

    @property
    def coded(self) -> bool:
        """Whether a codec of the role's link may stand for its tensor."""
        return Encoded in self.types


def _types(hint: Any, coded: bool) -> tuple[type, ...]:
    if get_origin(hint) is tuple:
        return (tuple,)
    types = get_args(hint) or (hint,)
    return (*types, Encoded) if coded else types


FIELDS: dict[type[Part], dict[str, Field]] = {
    kind: {
        entry.name: Field(entry.metadata["role"], _types(get_type_hints(kind)[entry.name], entry.metadata["coded"]))
        for entry in fields(kind)
    }
    for kind in KINDS
}
