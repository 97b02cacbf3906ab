"""Split federated fine-tuning in which the devices never backpropagate.

```python
import halfback as hb

run = hb.train("quickstart", steps=300, out="runs/q")
print(run.summary.metric.final)
```

Nothing heavy is imported until one of the names below is used; docs/python.md shows them at work.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfback import testing as testing
    from halfback.algorithms import algorithm as algorithm
    from halfback.auditing.audit import Audit as Audit
    from halfback.auditing.audit import audit as audit
    from halfback.auditing.finding import Finding as Finding
    from halfback.codecs import codec as codec
    from halfback.config import RunConfig as RunConfig
    from halfback.controllers import controller as controller
    from halfback.data.own import Data as Data
    from halfback.data.tasks import task as task
    from halfback.errors import Diverged as Diverged
    from halfback.errors import HalfbackError as HalfbackError
    from halfback.errors import Interrupted as Interrupted
    from halfback.errors import PeerError as PeerError
    from halfback.errors import UserError as UserError
    from halfback.models.cut import CutModel as CutModel
    from halfback.models.cut import cut as cut
    from halfback.models.families import family as family
    from halfback.parties.client import Client as Client
    from halfback.parties.protocol import Algorithm as Algorithm
    from halfback.parties.server import Server as Server
    from halfback.report.page import write_report as write_report
    from halfback.runs.applying import apply as apply
    from halfback.runs.comparison import Comparison as Comparison
    from halfback.runs.comparison import compare as compare
    from halfback.runs.evaluating import Scores as Scores
    from halfback.runs.package import package as package
    from halfback.runs.plan import Plan as Plan
    from halfback.runs.plan import plan as plan
    from halfback.runs.run import Run as Run
    from halfback.runs.run import load as load
    from halfback.runs.run import train as train
    from halfback.runs.summary import Summary as Summary
    from halfback.runs.told import RunState as RunState
    from halfback.runs.variants import Variant as Variant
    from halfback.telemetry.records import Record as Record
    from halfback.wire import messages as messages

_MODULES = {"messages": "wire.messages", "testing": "testing"}  # public names that are modules
# The other public names, each with the module that has it.
_PLACES = {
    "Algorithm": "parties.protocol",
    "Audit": "auditing.audit",
    "Client": "parties.client",
    "Comparison": "runs.comparison",
    "CutModel": "models.cut",
    "Data": "data.own",
    "Diverged": "errors",
    "Finding": "auditing.finding",
    "HalfbackError": "errors",
    "Interrupted": "errors",
    "PeerError": "errors",
    "Plan": "runs.plan",
    "Record": "telemetry.records",
    "Run": "runs.run",
    "RunConfig": "config",
    "RunState": "runs.told",
    "Scores": "runs.evaluating",
    "Server": "parties.server",
    "Summary": "runs.summary",
    "UserError": "errors",
    "Variant": "runs.variants",
    "algorithm": "algorithms",
    "apply": "runs.applying",
    "audit": "auditing.audit",
    "codec": "codecs",
    "compare": "runs.comparison",
    "controller": "controllers",
    "cut": "models.cut",
    "family": "models.families",
    "load": "runs.run",
    "package": "runs.package",
    "plan": "runs.plan",
    "task": "data.tasks",
    "train": "runs.run",
    "write_report": "report.page",
}
__all__ = [*_MODULES, *_PLACES]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used."""
    if name in _MODULES:
        return import_module(f"halfback.{_MODULES[name]}")
    if name not in _PLACES:
        raise AttributeError(f"module 'halfback' has no attribute {name!r}")
    return getattr(import_module(f"halfback.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
