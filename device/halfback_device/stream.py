"""Frames on a stream socket: two lengths, the header, the body."""

import socket
import struct

from halfback_device.errors import PeerError
from halfback_device.frames import Frame, Longest

_LENGTHS = struct.Struct("<II")
_PIECE = 1 << 20  # bytes read at once, so that a length alone allocates nothing


class Gone(Exception):
    """The other side has closed the stream."""


def write_frame(stream: socket.socket, frame: Frame) -> None:
    """Sends a frame; Gone if nobody is there."""
    header = frame.header.encode()
    try:
        stream.sendall(_LENGTHS.pack(len(header), len(frame.body)) + header)
        stream.sendall(frame.body)
    except OSError as error:
        raise Gone(str(error)) from None


def read_frame(stream: socket.socket, longest: Longest) -> Frame:
    """The next frame, no longer than this.

    Raises:
        PeerError: a length is over what is allowed; nothing of the frame has been read.
        Gone: the stream ends before the frame does, or was cut.
    """
    header, body = _LENGTHS.unpack(_exactly(stream, _LENGTHS.size))
    longest.check(header, body)
    try:
        text = bytes(_exactly(stream, header)).decode()
    except UnicodeDecodeError:
        _exactly(stream, body)  # what comes behind it is a frame again
        raise PeerError("header", "it is no text") from None
    return Frame(text, bytes(_exactly(stream, body)))


def _exactly(stream: socket.socket, count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        try:
            piece = stream.recv(min(count - len(data), _PIECE))
        except OSError as error:
            raise Gone(str(error)) from None
        if not piece:
            raise Gone("the other side is gone")
        data += piece
    return data
