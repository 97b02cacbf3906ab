"""Clients of a simulation that run on device packages: what is on a device is here too, from its frames to its disk.

PyTorch has the server alone. Each client is one of `halfback_device`, in this process, with a replica of θ and an end of a
link of its own; it answers the questions that a client on another machine is asked, by the engine that asks these. So a
run goes on from its checkpoint as a deployed one does: from what the clients themselves have written down, beside it.
"""

import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, final

from halfback import config as configuration
from halfback.assembly import Built
from halfback.assembly.remote import remote_server
from halfback.engine.links import CACHES
from halfback.engine.remote.frames import Frame, Longest
from halfback.engine.remote.presence import Came, Terms
from halfback.engine.remote.server import RemoteServer
from halfback.errors import PeerError, UserError

if TYPE_CHECKING:
    from halfback_device.client import Device

STATES = "devices"  # the folder of what the clients have written down
_PATIENCE = 1e9  # seconds: nobody is late in one process
