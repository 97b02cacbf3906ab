"""The shape of the code: which room may import which, and what no file may hold."""

import ast
import inspect
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from halfback.algorithms import algorithms

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "halfback"

# Who may import what of the package, beside `halfback.errors` (everyone) and the importer's own room.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "registry": set(),
    "json_reading": set(),
    "zeroth": set(),
    "masking": set(),
    "privacy": {"json_reading"},
    "optimizers": set(),
    "wire": set(),
    "models": {"registry"},
    "codecs": {"privacy", "registry"},
    "controllers": {"registry"},
    "data": {"registry"},
    "telemetry": {"json_reading"},
    "report": {"json_reading"},
    "parties": {"wire.messages", "zeroth", "models", "optimizers.base"},
    "algorithms": {"parties", "registry", "wire.messages", "zeroth", "models"},
    "config": {
        "algorithms",
        "parties",
        "data.options",
        "masking.settings",
        "privacy.settings",
        "models.adapters",
        "optimizers.table",
        "zeroth",
    },
    "engine": {
        "masking",
        "parties",
        "privacy",
        "wire",
        "codecs",
        "controllers.protocol",
        "json_reading",
        "telemetry",
        "zeroth",
        "models.cut",
        "models.normalising",
        "models.running",
        "optimizers.table",
    },
    "assembly": {
        "algorithms",
        "codecs",
        "config",
        "controllers",
        "data",
        "engine",
        "masking",
        "models",
        "optimizers",
        "parties",
        "privacy",
        "telemetry",
        "wire",
        "zeroth",
    },
    "runs": {
        "algorithms",
        "assembly",
        "codecs.private",
        "config",
        "data",
        "engine",
        "json_reading",
        "models",
        "packaging",
        "parties",
        "planning",
        "privacy",
        "report",
        "telemetry",
        "zeroth.native",
    },
    "auditing": {
        "assembly",
        "codecs",
        "config",
        "data",
        "engine",
        "models",
        "parties",
        "report",
        "runs",
        "telemetry.records",
        "wire.messages",
        "zeroth",
    },
    "packaging": {
        "assembly",
        "config",
        "data",
        "engine",
        "models",
        "parties",
        "wire.messages",
    },
    "planning": {
        "algorithms",
        "assembly",
        "codecs",
        "config",
        "data",
        "engine",
        "models",
        "optimizers.table",
        "parties",
        "telemetry",
        "zeroth",
    },
    "testing": {
        "algorithms",
        "assembly",
        "codecs",
        "config",
        "controllers",
        "data",
        "engine",
        "models",
        "parties",
        "planning",
        "runs",
        "telemetry",
        "wire",
        "zeroth",
    },
    "deploy": {
        "algorithms",
        "assembly",
        "config",
        "data",
        "engine",
        "json_reading",
        "parties",
        "report",
        "runs",
        "telemetry.records",
        "wire",
    },
    "cli": {
        "algorithms",
        "assembly",
        "auditing",
        "codecs",
        "config",
        "controllers",
        "data",
        "deploy",
        "models",
        "planning",
        "report",
        "runs",
        "testing",
    },
    "__main__": {"cli"},
    "__init__": {
        "auditing",
        "codecs",
        "controllers",
        "data.own",
        "data.tasks",
        "models.families",
        "algorithms",
        "config",
        "models.cut",
        "parties",
        "report.page",
        "runs",
        "telemetry.records",
        "testing",
        "wire.messages",
    },
}
FILES = sorted(PACKAGE.rglob("*.py"))
DEVICE_FILES = sorted((ROOT / "device" / "halfback_device").rglob("*.py"))


def module_of(file: Path) -> str:
    return ".".join(("halfback", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_of(file) for file in FILES}


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(source: str, package: str) -> list[tuple[int, str]]:
    """(line, module of this package) of every import, wherever it stands: `from halfback.wire import packing` counts as
    `wire.packing`, `from halfback.errors import UserError` as `errors`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join((*parents, *filter(None, [base])))
            modules = [f"{base}.{alias.name}" for alias in node.names]
            names = [module if module in MODULES else base for module in modules]
        found += [(node.lineno, name.removeprefix("halfback.")) for name in names if name.split(".")[0] == "halfback"]
    return found


def forbidden(file: Path, source: str) -> list[str]:
    mine = room(file)
    package = ".".join(("halfback", *file.relative_to(PACKAGE).parent.parts))
    allowed = {*ARROWS[mine], mine, "errors"}
    return [
        f"{file.relative_to(ROOT)}:{line} imports halfback.{module}; {mine} may import {', '.join(sorted(allowed))}"
        for line, module in imported(source, package)
        if not any(module == arrow or module.startswith(f"{arrow}.") for arrow in allowed)
    ]


def test_imports_point_one_way() -> None:
    assert [line for file in FILES for line in forbidden(file, file.read_text())] == []


def test_every_room_is_in_the_table() -> None:
    assert {room(file) for file in FILES} <= set(ARROWS)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("wire/ledger.py", "from halfback.zeroth import seeds"),
        ("wire/ledger.py", "def f():\n    import halfback.zeroth.seeds"),
        ("wire/ledger.py", "from ..zeroth.seeds import seed_for"),
        ("zeroth/seeds.py", "from halfback.models.cut import cut"),
        ("models/cut.py", "from halfback.data.tasks import TaskOptions"),
        ("data/tasks.py", "from halfback.models.cut import cut"),
        ("algorithms/ho_sfl.py", "from halfback.wire.packing import pack"),
        ("algorithms/ho_sfl.py", "from halfback.wire import packing"),
        ("algorithms/ho_sfl.py", "from halfback.engine.link import Link"),
        ("algorithms/ho_sfl.py", "from halfback.telemetry.meters import Stopwatch"),
        ("engine/link.py", "from halfback.algorithms.ho_sfl import HoSfl"),
        ("engine/link.py", "from halfback.algorithms import algorithms"),
        ("engine/link.py", "from halfback.assembly import build"),
        ("report/page.py", "from halfback.telemetry.records import Record"),
        ("telemetry/records.py", "from halfback.wire.ledger import Ledger"),
        ("assembly/whole.py", "from halfback.runs.run import train"),
        ("assembly/whole.py", "from halfback import cli"),
        ("runs/run.py", "import halfback.cli"),
        ("config/__init__.py", "from halfback.assembly import build"),
    ],
)
def test_the_test_sees_a_wrong_arrow(file: str, source: str) -> None:
    assert len(forbidden(PACKAGE / file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("wire/ledger.py", "from halfback.errors import PeerError"),
        ("wire/ledger.py", "from halfback import errors"),
        ("wire/ledger.py", "from . import packing"),
        ("algorithms/ho_sfl.py", "from halfback.wire.messages import Join"),
        ("__main__.py", "from halfback.cli import main"),
    ],
)
def test_the_test_lets_a_right_arrow_pass(file: str, source: str) -> None:
    assert forbidden(PACKAGE / file, source) == []


def loaded(source: str, package: str, modules: set[str]) -> set[str]:
    """Modules of this package that a module imports when it is imported itself, or for its types alone."""
    found: set[str] = set()

    def look(nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.update(name for _, name in imported(ast.unparse(node), package))
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                look(ast.iter_child_nodes(node))

    look(ast.parse(source).body)
    return found & modules


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next and the last the first; empty where there are none."""
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        found = next(filter(None, (follow(other, [*way, name]) for other in sorted(graph[name]))), [])
        done.add(name)
        return found

    return next(filter(None, (follow(name, []) for name in graph)), [])


def graph_of(sources: dict[Path, str]) -> dict[str, set[str]]:
    names = {file: module_of(file).removeprefix("halfback.") for file in sources}
    every = set(names.values())
    return {
        name: loaded(sources[file], ".".join(("halfback", *file.relative_to(PACKAGE).parent.parts)), every) - {name}
        for file, name in names.items()
    }


def test_no_room_may_import_another_in_a_circle() -> None:
    rooms = {mine: {arrow.partition(".")[0] for arrow in arrows} - {mine} for mine, arrows in ARROWS.items()}
    assert circle(rooms) == []
    assert circle(rooms | {"wire": {"parties"}})


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circle(graph_of({file: file.read_text() for file in FILES})) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("from halfback.data.tables import row_of", "from halfback.data.labels import is_missing"),
        ("from .tables import row_of", "if TYPE_CHECKING:\n    from halfback.data import labels"),
        ("import halfback.data.tables", "class Row:\n    from halfback.data.labels import is_missing"),
    ],
)
def test_the_test_sees_a_circle(one: str, other: str) -> None:
    sources = {PACKAGE / "data" / "labels.py": one, PACKAGE / "data" / "tables.py": other}
    assert sorted(circle(graph_of(sources))) == ["data.labels", "data.tables"]
    later = f"def f():\n    {one}"  # what a function imports, when it is called, makes none
    assert circle(graph_of(sources | {PACKAGE / "data" / "labels.py": later})) == []


def tops(source: str) -> set[str]:
    """The packages that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def test_the_device_and_the_reference_share_no_code() -> None:
    # What is packed is tried out as a device would run it; a site or a simulation may have such a client.
    may = {"packaging", "runs"}
    assert {room(file) for file in FILES if "halfback_device" in tops(file.read_text())} <= may
    assert [file for file in DEVICE_FILES if "halfback" in tops(file.read_text())] == []
    assert tops("def f():\n    from halfback_device import wire") == {"halfback_device"}


@pytest.mark.parametrize("name", list(algorithms()))
def test_an_algorithm_is_one_file_of_a_page_or_two(name: str) -> None:
    file = Path(inspect.getfile(algorithms()[name]))
    lines = len(file.read_text().splitlines())
    assert lines <= 150, f"{file.relative_to(ROOT)} has {lines} lines; 150 are allowed"
    assert file.stem == name


def test_a_file_has_at_most_350_lines() -> None:
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in (*FILES, *DEVICE_FILES)}
    assert {file: count for file, count in lines.items() if count > 350} == {}


# What a user may say by keyword, or as an option of a command.
MAY_BE_WIDE = {("runs/run.py", "train"), ("runs/comparison.py", "compare")}


def wide(file: Path, source: str) -> list[str]:
    """Functions of more than six parameters, beside `self` and `cls`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            named = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
            names = [arg.arg for arg in named if arg is not None and arg.arg not in ("self", "cls")]
            if len(names) > 6 and not any(file == PACKAGE / place and node.name == name for place, name in MAY_BE_WIDE):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}({', '.join(names)})")
    return found


def test_no_function_has_more_than_six_parameters() -> None:
    files = [*(file for file in FILES if room(file) != "cli"), *DEVICE_FILES]
    assert [line for file in files for line in wide(file, file.read_text())] == []
    assert wide(PACKAGE / "wire" / "ledger.py", "class A:\n    def f(self, a, b, *c, d, e, f, **g): ...")
    assert not wide(PACKAGE / "wire" / "ledger.py", "class A:\n    def f(self, a, b, *c, d, e, f): ...")


def compared_names(source: str, names: set[str]) -> list[int]:
    """Lines that compare something with an algorithm's name, or match on one."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        values: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            values = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            values = [node.value]
        constants = [inner for value in values for inner in ast.walk(value) if isinstance(inner, ast.Constant)]
        lines += [constant.lineno for constant in constants if constant.value in names]
    return lines


def test_nothing_asks_which_algorithm_runs() -> None:
    names = set(algorithms())
    found = {str(f.relative_to(ROOT)): compared_names(f.read_text(), names) for f in FILES}
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "if algorithm == 'ho_sfl': pass",
        "x = name in ('ho_sfl', 'b')",
        "x = 'ho_sfl' != name",
        "match name:\n    case 'ho_sfl': pass",
    ],
)
def test_the_test_sees_a_question_for_the_algorithm(source: str) -> None:
    assert compared_names(source, {"ho_sfl"})


MACHINE_PATH = re.compile(r"(?<![\w.$~}])/(?:home|root|work|Users|mnt|tmp/(?!$)|workspace)/[\w.-]+")


def test_no_tracked_file_names_a_place_on_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout, so there are no tracked files")
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png", ".gif", ".jpg", ".safetensors", ".gz"):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [
                f"{name}:{n}: {line.strip()[:80]}" for n, line in enumerate(lines, 1) if MACHINE_PATH.search(line)
            ]
    assert found == []


@pytest.mark.parametrize("text", ["open('{}work/main/x')", "see {}home/me/data", " {}root/.cache"])
def test_the_test_sees_a_machine_path(text: str) -> None:
    assert MACHINE_PATH.search(text.format("/"))
