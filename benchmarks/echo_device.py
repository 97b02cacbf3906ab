"""The device of `gateway_transport.py`: it joins as ours do, and replies to sizes with sizes, computing nothing."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from halfback_device.frames import Frame, Ready, Said, frame
from halfback_device.line import Lost, event_loop, opened, tls

_MAX_BYTES = 1 << 30
_SMALL = 100  # bytes of a message of slopes
_REPLY = Said(lineage="0" * 16, round=0, exchange=1)


def main(address: str, token: str, authority: Path, size: int) -> None:
    """Replies until the gateway is gone."""
    large, small = frame(_REPLY, bytes(size)), frame(_REPLY, bytes(_SMALL))
    ready = frame(Ready(fits=True, takes=_MAX_BYTES, rows=1))
    with event_loop() as loop:
        line = opened(loop, address, token, tls(authority))
        line.send(
            Frame(json.dumps({"kind": "hello", "protocol": 1, "version": version("halfback-device"), "package": ""}))
        )
        while line.receive(10) is None:
            pass
        line.send(Frame('{"kind":"ready"}'))
        line.take(_MAX_BYTES)
        try:
            while True:
                if (asked := line.receive(1)) is not None:
                    came = len(asked.body)
                    line.send(ready if not came else large if came == _SMALL else small)
        except Lost:
            return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
