"""The ledger: bytes that were really sent, by direction, message kind and field role."""

from typing import Literal

from halfback.wire.packing import Packed

Direction = Literal["up", "down"]


class Ledger:
    """Adds up the lengths of serialised messages; nothing in it is priced by a formula."""

    def __init__(self) -> None:
        self.bytes_by_kind: dict[str, dict[str, dict[str, int]]] = {"up": {}, "down": {}}

    def add(self, direction: Direction, kind: str, packed: Packed) -> None:
        """Enters one message."""
        entry = self.bytes_by_kind[direction].setdefault(kind, {})
        for role, count in packed.bytes_by_role.items():
            entry[role] = entry.get(role, 0) + count

    def total(self, direction: Direction) -> int:
        """Bytes sent in that direction."""
        return sum(sum(roles.values()) for roles in self.bytes_by_kind[direction].values())

    def state_dict(self) -> dict[str, dict[str, dict[str, int]]]:
        """The entries, for a checkpoint."""
        return self.bytes_by_kind

    def load_state_dict(self, state: dict[str, dict[str, dict[str, int]]]) -> None:
        """Continues from a checkpoint's entries."""
        self.bytes_by_kind = state
