"""What a comparison compares: algorithms, each with settings of its own, and the values that one is chosen among."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from halfback.config.values import paths_of, text_of
from halfback.errors import UserError

RATES = ("bottom.lr", "top.lr")  # which `lr` stands for
# What a comparison sets itself, and the option that it follows from.
_MADE = {
    "algorithm.name": "--algorithms",
    "seed": "--seeds",
    "beside": "--algorithms",
    "per_algorithm": "--algorithms",
    "first_eval_rows": "none, since what methods gain is told from all rows",
}


@dataclass(frozen=True)
class Grid:
    """The values of a setting (of several at once, with `lr`) as they were given, two or more."""

    name: str
    keys: tuple[str, ...]
    values: tuple[str, ...]

    @classmethod
    def of(cls, name: str, values: Sequence[str]) -> "Grid":
        """The grid of a setting; UserError unless there are two or more different values."""
        if not name or "" in values or len(set(values)) < max(len(values), 2):
            raise refused_grid(f"{name}={','.join(values)}")
        refuse_made(f"{name}={','.join(values)}")
        return cls(name, RATES if name == "lr" else (name,), tuple(values))

    @classmethod
    def parse(cls, text: str) -> "Grid":
        """The grid that `lr=1e-4,1e-3` says."""
        name, equals, given = text.partition("=")
        if not equals:
            raise refused_grid(text)
        return cls.of(name, split(given, ","))

    @classmethod
    def of_mapping(cls, tune: Mapping[str, Sequence[Any]]) -> "Grid":
        """The grid that `{"lr": [1e-4, 1e-3]}` says."""
        if len(tune) != 1:
            raise UserError(f"tune={dict(tune)}: one setting with its values is allowed, as {{'lr': [1e-4, 1e-3]}}")
        ((name, values),) = tune.items()
        return cls.of(name, [_value_text(name, value) for value in values])

    def __str__(self) -> str:
        return f"{self.name}={','.join(self.values)}"

    def changes(self, value: str) -> list[str]:
        """The settings that a run with this value has."""
        return [f"{key}={value}" for key in self.keys]


@final
class Variant:
    """An algorithm as it takes part in a comparison: its name, and settings that it has to itself.

    Attributes:
        label: its row in the tables, such as `split_lora:steps_per_round=10`.
        algorithm: the algorithm's name.
        settings: each as `key=value`.
        grid: the learning rates to choose among, if there are any.
    """

    def __init__(self, algorithm: str, *, lr: float | Sequence[float] | None = None, **settings: Any) -> None:
        """A variant of `algorithm`.

        Args:
            algorithm: a registered algorithm's name.
            lr: the learning rate of both parts. Of several the best is chosen, on rows held back from training.
            settings: by keyword, as `halfback.train` takes them.
        """
        if not algorithm:
            raise UserError("a variant needs the name of an algorithm")
        self.algorithm = algorithm
        own = [text_of(path, value) for path, value in paths_of(settings).items()]
        rates = [text_of("lr", lr)] if isinstance(lr, int | float) else []
        self.label = ":".join([algorithm, *own, *rates])
        self.settings = (*own, *(f"{key}={rate.partition('=')[2]}" for rate in rates for key in RATES))
        for setting in self.settings:
            refuse_made(setting)
        several = None if lr is None or isinstance(lr, int | float) else [_value_text("lr", rate) for rate in lr]
        self.grid = None if several is None else Grid.of("lr", several)

    def __str__(self) -> str:
        """As it is entered on the command line."""
        return self.label if self.grid is None else f"{self.label}:lr=[{', '.join(self.grid.values)}]"

    def __repr__(self) -> str:
        return f"<Variant {str(self)!r}>"

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Reads a variant as the command line takes it.

        Args:
            text: `NAME:KEY=VALUE:…`.

        Returns:
            The variant, whose label is the text as it stands.
        """
        name, *settings = split(text, ":")
        for setting in settings:
            refuse_made(setting)
        own = [setting for setting in settings if setting.partition("=")[0].strip() != "lr"]
        rates = [setting.partition("=")[2].strip() for setting in settings if setting not in own]
        several = [rate for rate in rates if rate.startswith("[")]
        found = cls(name)
        found.settings = (*own, *(f"{key}={rate}" for rate in rates if rate not in several for key in RATES))
        found.grid = Grid.of("lr", split(several[-1].strip("[]"), ",")) if several else None
        kept = [setting for setting in settings if setting in own or setting.partition("=")[2].strip() not in several]
        found.label = ":".join([name, *kept]) if several else text
        return found


def parse_variants(text: str) -> list[Variant]:
    """The variants that are entered on the command line, separated by commas.

    Raises:
        UserError: a name is missing, or a setting is not a variant's own to set.
    """
    labels = split(text, ",")
    if not all(split(label, ":")[0] for label in labels):
        raise UserError(f"--algorithms {text!r}: names are allowed, separated by single commas")
    return [Variant.parse(label) for label in labels]


def split(text: str, separator: str) -> list[str]:
    """The stripped parts of a text, which is not split inside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def refuse_made(setting: str) -> None:
    """UserError for a setting that a comparison makes itself."""
    path = setting.partition("=")[0].strip()
    for made, option in _MADE.items():
        if path == made or path.startswith(f"{made}."):
            raise UserError(f"{setting}: compare sets {made} itself; use {option}")


def refused_grid(text: str) -> UserError:
    """What is said of a grid that is none."""
    return UserError(f"--tune {text}: a setting and two or more different values are allowed, as lr=1e-4,1e-3")


def _value_text(name: str, value: Any) -> str:
    return text_of(name, value).partition("=")[2]
