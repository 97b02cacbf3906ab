"""The worker of `transport.py`: at the end of a relay's line, it replies to sizes with sizes."""

import json
import socket
import sys

from transport import _REPLY, SMALL

from halfback.engine.remote.frames import Longest, Ready, frame
from halfback.engine.remote.stream import Gone, read_frame, write_frame
from halfback.wire.packing import MAX_BYTES


def main(descriptor: int, size: int) -> None:
    """Replies until the site is gone."""
    large, small = frame(_REPLY, bytes(size)), frame(_REPLY, bytes(SMALL))
    ready = frame(Ready(fits=True, takes=MAX_BYTES, rows=1))
    with socket.socket(fileno=descriptor) as line:
        while True:
            try:
                came = len(read_frame(line, Longest(MAX_BYTES)).body)
                write_frame(line, ready if not came else large if came == SMALL else small)
            except Gone:
                return


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    main(arguments["descriptor"], int(arguments["site"]["folder"]))
