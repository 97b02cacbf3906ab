"""Things that are chosen by name, of this package and of others: one table a kind."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any, TypeVar, final

from pydantic import TypeAdapter, ValidationError

from halfback.errors import UserError, offer

T = TypeVar("T")


@final
class Registry(Mapping[str, T]):
    """Name → thing. Ours come first, then what a decorator or a call registered in this process, then entry points.

    An entry point is what an installed package declares under the registry's group; its module is imported when the
    table is first looked into. A name of ours, or of this process, is never taken over by an entry point.
    """

    def __init__(self, group: str, ours: Mapping[str, T]) -> None:
        """A table that knows nothing of other packages yet.

        Args:
            group: of entry points, such as "halfback.codecs".
            ours: what this package brings, in the order in which lists show it.
        """
        self.group = group
        self._ours = dict(ours)
        self._here: dict[str, T] = {}
        self._declared: dict[str, T] | None = None

    def add(self, name: str, thing: T) -> None:
        """Registers `thing` in this process; the same name again replaces it, as when a notebook's cell runs again.

        Raises:
            UserError: the name is one of this package's own.
        """
        if name in self._ours:
            raise UserError(f"{self.group}: {name!r} is halfback's own; choose another name")
        self._here[name] = thing

    def named(self, name: str) -> Callable[[Any], Any]:
        """A decorator that registers what it stands on under `name`, and leaves it as it is."""

        def register(thing: Any) -> Any:
            self.add(name, thing)
            return thing

        return register

    def __getitem__(self, name: str) -> T:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, T]:
        if self._declared is None:
            self._declared = {}  # what is imported below may look in here
            self._declared = {entry.name: entry.load() for entry in entry_points(group=self.group)}
        others = {name: thing for name, thing in (self._declared | self._here).items() if name not in self._ours}
        return self._ours | others


def parsed(table: Mapping[str, type[T]], chosen: str | Mapping[str, Any], where: str, noun: str) -> T:
    """What a recipe chooses from a table of dataclasses: by a name, or by a mapping of a `name` and options.

    Raises:
        UserError: an unknown name, option or value; says `where`, by its `noun`, and what is allowed.
    """
    options = {"name": chosen} if isinstance(chosen, str) else dict(chosen)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in table:
        raise UserError(f"{where}: {noun} {name!r} is unknown; {offer(str(name), list(table))}")
    kind: Any = table[name]
    allowed = [field.name for field in fields(kind)]
    for option in options:
        if option not in allowed:
            has = offer(str(option), allowed) if allowed else "it has no options"
            raise UserError(f"{where}: option {option!r} is unknown to {name}; {has}")
    try:
        found: T = TypeAdapter(kind).validate_python(options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {noun} {name}: {path}={first['input']!r}: {first['msg']}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return found
