"""Commands about what there is to name: algorithms (and the checks of one), codecs, tasks, models, recipes, keys."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfback.cli.printing import parsed, print_rows
from halfback.errors import UserError, offer, shown

if TYPE_CHECKING:
    from halfback.config.keys import Key

_Name = Annotated[str | None, typer.Argument(show_default=False, help="Say all of this one.")]
_Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


def algorithms(
    name: _Name = None,
    as_json: _Json = False,
) -> None:
    """The algorithms; of one what it does, its options and where it is written down."""
    from halfback.algorithms import algorithms as registered

    _classes(registered(), name, as_json, "algorithm", "algorithm.{}=")


def codecs(
    name: _Name = None,
    as_json: _Json = False,
) -> None:
    """The codecs that a link may have; of one what it does, and its options."""
    from halfback.codecs import CODECS

    _classes(CODECS, name, as_json, "codec", "{}: ")


def controllers(
    name: _Name = None,
    as_json: _Json = False,
) -> None:
    """What sets the thresholds of temporal reuse; of one what it does, and its options."""
    from halfback.controllers import controllers as registered

    _classes(registered(), name, as_json, "controller", "controller.{}=")


def conformance(
    name: Annotated[str, typer.Argument(help="An algorithm, of this package or another.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", show_default=False, help="Settings to check it with."),
    ] = None,
) -> None:
    """Hold an algorithm against every check of the conformance table; exit status 1 if one fails."""
    from halfback.testing import check

    if not check(name, **parsed(settings or [])).passed:
        raise typer.Exit(1)


def tasks(
    name: _Name = None,
    as_json: _Json = False,
) -> None:
    """The tasks; of one the settings that it takes."""
    from halfback.config.keys import keys_of
    from halfback.data.tasks import describe_tasks, fields_of

    rows = dict(describe_tasks())
    if name is None:
        _listed(rows, as_json)
        return
    _check("task", name, rows)
    theirs = {f"task.{field}" for field in fields_of(name)}
    every = keys_of("task.")
    of_files = {f"task.{field}" for other in rows for field in fields_of(other)}
    options = [key for key in every if key.path in theirs or key.path not in of_files]
    _shown(name, [rows[name]], options, {"train with": f"task.name={name}"}, as_json)


def models(
    name: Annotated[str | None, typer.Argument(show_default=False, help="Say all of this one, or of a folder.")] = None,
    as_json: _Json = False,
) -> None:
    """The models and families of models; of one its blocks, and where it may be cut."""
    from halfback.models.describing import describe_model, describe_models

    rows = dict(describe_models())
    if name is None:
        _listed(rows, as_json)
        return
    line, facts = describe_model(name)
    _shown(name, [line], [], facts, as_json)


def recipes(
    name: _Name = None,
    as_json: _Json = False,
) -> None:
    """The shipped recipes; of one its text."""
    from halfback.config import recipes as shipped
    from halfback.config.recipes import recipe_text

    rows = shipped()
    if name is None:
        _listed(rows, as_json)
        return
    _check("recipe", name, rows)
    text = recipe_text(name).partition("\n")[2].strip()
    _shown(name, [rows[name], text], [], {"train with": f"halfback train {name}"}, as_json)


def keys(
    prefix: Annotated[
        str, typer.Argument(show_default=False, help="Only those that begin so: bottom, bottom.lr, task.")
    ] = "",
    as_json: _Json = False,
) -> None:
    """The settings of a recipe: what is allowed, the default, and a line about each."""
    from halfback.config.keys import keys_of

    found = keys_of(prefix)
    if not found:
        sections = dict.fromkeys(key.path.partition(".")[0] for key in keys_of(""))
        raise UserError(f"no setting begins with {shown(prefix)}; {offer(prefix, sections)}")
    if as_json:
        _as_json([asdict(key) for key in found])
        return
    _print_keys(found, "{}=")
    if prefix in "algorithm" or prefix in "controller":
        print("Options: halfback algorithms NAME, halfback codecs NAME, halfback controllers NAME")


def _classes(known: Mapping[str, Any], name: str | None, as_json: bool, what: str, form: str) -> None:
    """Things that are frozen dataclasses with their options as fields."""
    from halfback.config.keys import options_of

    if name is None:
        _listed({name: _first_line(kind, what) for name, kind in known.items()}, as_json)
        return
    _check(what, name, known)
    kind = known[name]
    module = inspect.getmodule(kind)
    text = inspect.getdoc(kind if what == "codec" else module) or ""
    text = text.partition("\nAttributes:\n")[0].strip()
    _shown(name, [text], options_of(kind), {"source": str(kind.__module__)}, as_json, form)


def _first_line(kind: Any, what: str) -> str:
    """A codec shares its file with others; the others' files are about one thing alone."""
    return (inspect.getdoc(kind if what == "codec" else inspect.getmodule(kind)) or "").partition("\n")[0]


def _check(what: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise UserError(f"{what} {shown(name)} is unknown; {offer(name, known)}")


def _listed(rows: Mapping[str, str], as_json: bool) -> None:
    if as_json:
        _as_json([{"name": name, "says": line} for name, line in rows.items()])
        return
    print_rows(list(rows.items()))


def _shown(
    name: str, said: Sequence[str], options: "Sequence[Key]", facts: Mapping[str, str], as_json: bool, form: str = "{}="
) -> None:
    """All of one thing."""
    if as_json:
        _as_json({"name": name, "says": "\n\n".join(said), "options": [asdict(key) for key in options], **facts})
        return
    print("\n\n".join(said))
    if options:
        print()
        _print_keys(options, form)
    print()
    print_rows([(f"{fact}:", value) for fact, value in facts.items()])


def _print_keys(found: "Sequence[Key]", form: str) -> None:
    for key in found:
        default = f"   (default {key.default})" if key.default else ""
        print(f"{form.format(key.path)}{key.kind}{default}\n    {key.says}")


def _as_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))
