"""What `halfback train … --dry-run` prints."""

from typing import TYPE_CHECKING

from halfback.cli.printing import console, print_table

if TYPE_CHECKING:
    from halfback.config import RunConfig


def show_costs(config: "RunConfig") -> None:
    """The configuration as a run would have it, and what it would cost; nothing is trained or written."""
    from halfback import config as configuration
    from halfback.runs.dry import costs

    print(configuration.dump(config))
    found = costs(config)
    if found.rows:
        print_table(found.header, found.rows)
    for sentence in found.said:
        console.print(sentence, markup=False, highlight=False)
