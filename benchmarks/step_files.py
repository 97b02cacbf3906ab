"""Over how much of the code one step is spread.

It prints how many of the package's files run a line during one HO-SFL step in one process, what an author of a method
is handed, the widest functions, the largest files, and the lines of all.

    python benchmarks/step_files.py [--files] [--small halfback.testing.small]

It measures the package that Python finds; `PYTHONPATH` picks another checkout, `--small` the module there that has
its small runs.
"""

import argparse
import ast
import importlib
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

import halfback

PACKAGE = Path(halfback.__file__).parent
HANDED = ("Client", "Server", "Needs", "Traits")
"""Of the parties' room: what a method is written against, and what it declares."""
TESTS = {"testing", "conformance"}
"""The checks that ship with the package; the second is their old name."""
OUTSIDE = {"cli", "cli.py", *TESTS}
"""No part of the core: there the parameters of a function are the options of a command, or a test's fixtures."""

_WARM = 12  # rounds, after which every client was in one, and what is made once is made


def files_of_a_step(small: Any) -> list[str]:
    """The files that run a line in a round of one step: two of four clients, no codec, all of them there before."""
    built = small.built(small.images("ho_sfl"))
    federation = getattr(built, "federation", None) or built.simulation
    small.run(federation, _WARM)
    found = set()

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            found.add(frame.f_code.co_filename)
        return line

    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: line if frame.f_code.co_filename.startswith(f"{PACKAGE}/") else None)
    try:
        small.run(federation, 1, first=_WARM)
    finally:
        sys.settrace(before)
    return sorted(str(Path(name).relative_to(PACKAGE)) for name in found if name != small.__file__)


def classes(trees: dict[str, ast.Module]) -> Iterator[tuple[str, ast.ClassDef]]:
    """(file, class) of all that an author is handed."""
    for file, tree in trees.items():
        if file.split("/")[0] in ("algorithms", "parties"):
            yield from ((file, n) for n in tree.body if isinstance(n, ast.ClassDef) and n.name in HANDED)


def fields(node: ast.ClassDef) -> list[str]:
    """A class's fields: annotated in its body, or set in `__init__`, without private and class variables."""
    found = [
        statement.target.id
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and "ClassVar" not in ast.unparse(statement.annotation)
    ]
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            found += [
                target.attr
                for target in ast.walk(method)
                if isinstance(target, ast.Attribute)
                and isinstance(target.ctx, ast.Store)
                and ast.unparse(target.value) == "self"
            ]
    return [name for name in dict.fromkeys(found) if not name.startswith("_")]


def widths(trees: dict[str, ast.Module]) -> list[tuple[int, str]]:
    """(parameters, where) of every function of the core, the widest first; `self` and `cls` are not counted.

    What `import halfback` gives is left out: there keywords are what a command's options are.
    """
    given = {name for name in getattr(halfback, "__all__", ()) if name.islower()}
    found = []
    for file, tree in trees.items():
        if file.split("/")[0] in OUTSIDE:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not (node in tree.body and node.name in given):
                of = node.args
                listed = [*of.posonlyargs, *of.args, *of.kwonlyargs, *filter(None, (of.vararg, of.kwarg))]
                names = [argument.arg for argument in listed if argument.arg not in ("self", "cls")]
                found.append((len(names), f"{file}:{node.lineno} {node.name}"))
    return sorted(found, reverse=True)


def code_lines(source: str) -> int:
    """Lines with more on them than a comment or a docstring."""
    beside = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for token in tokens if token.type not in beside for n in range(token.start[0], token.end[0] + 1)}
    texts = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return len(lines - {n for text in texts for n in range(text.lineno, (text.end_lineno or text.lineno) + 1)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--small", default="halfback.testing.small", help="the module that has small runs")
    parser.add_argument("--files", action="store_true", help="name the files of the step")
    chosen = parser.parse_args()
    sources = {str(p.relative_to(PACKAGE)): p.read_text(encoding="utf-8") for p in sorted(PACKAGE.rglob("*.py"))}
    trees = {file: ast.parse(source) for file, source in sources.items()}
    step = files_of_a_step(importlib.import_module(chosen.small))
    handed = {node.name: fields(node) for _, node in classes(trees)}
    lengths = sorted(((source.count("\n"), file) for file, source in sources.items()), reverse=True)
    methods = [length for length, file in lengths if file.startswith("algorithms/") and _is_method(trees[file])]
    core = {file: source for file, source in sources.items() if file.split("/")[0] not in TESTS}
    full = sum(bool(line.strip()) for source in core.values() for line in source.splitlines())
    code = sum(code_lines(source) for source in core.values())

    table = Table("what", "figure", "of which", title=f"{len(sources)} files")
    table.add_row("files in which a line runs in a step", str(len(step)), _by_room(step))
    handed_counts = ", ".join(f"{name} {len(names)}" for name, names in handed.items())
    table.add_row("fields that an author is handed", str(sum(map(len, handed.values()))), handed_counts)
    table.add_row("parameters of the widest function", str(widths(trees)[0][0]), widths(trees)[0][1])
    table.add_row("lines of the largest file", str(lengths[0][0]), lengths[0][1])
    table.add_row("lines of the largest algorithm", str(max(methods)), f"{len(methods)} algorithms")
    what = f"of which {code} are code; with the checks that ship, {sum(length for length, _ in lengths)} lines"
    table.add_row("lines that are not empty", str(full), what)
    console = Console(width=140)
    console.print(table)
    widest = Table("parameters", "function", title="the ten widest")
    for count, where in widths(trees)[:10]:
        widest.add_row(str(count), where)
    console.print(widest)
    if chosen.files:
        console.print("\n".join(step), highlight=False)


def _is_method(tree: ast.Module) -> bool:
    """Whether the file is one of an algorithm: it has the two functions."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {"client_round", "answer"} <= names and not any(
        isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(of) for of in node.bases)
        for node in ast.walk(tree)
    )


def _by_room(files: list[str]) -> str:
    rooms = [file.split("/")[0].removesuffix(".py") for file in files]
    return ", ".join(f"{room} {rooms.count(room)}" for room in dict.fromkeys(rooms))


if __name__ == "__main__":
    main()
