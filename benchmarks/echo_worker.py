"""The worker of `transport.py`: at the end of a relay's line, it answers sizes with sizes."""

import json
import socket
import sys

from transport import _ANSWER, SMALL

from halfback.engines.frames import frame
from halfback.engines.stream import Gone, read_frame, write_frame


def main(descriptor: int, size: int) -> None:
    """Answers until the site is gone."""
    large, small = frame(_ANSWER, bytes(size)), frame(_ANSWER, bytes(SMALL))
    with socket.socket(fileno=descriptor) as line:
        while True:
            try:
                came = len(read_frame(line).body)
                write_frame(line, large if came == SMALL else small)
            except Gone:
                return


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    main(arguments["descriptor"], int(arguments["site"]["folder"]))
