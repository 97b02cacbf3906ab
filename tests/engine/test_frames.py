"""What a header may not do to the log of who reads it."""

import pytest

from halfback.engine.remote.frames import Refused, read_question, read_reply
from halfback.errors import PeerError


@pytest.mark.parametrize(
    "header",
    [
        '{"kind":"open\\n2026-01-01 CRITICAL: forged"}',
        '{"kind":"save","lineage":"0123456789abcdef","rounds":1,"a\\u2028b\\u001b[2J":1}',
    ],
)
def test_a_refusal_that_quotes_a_header_is_one_line(header: str) -> None:
    with pytest.raises(PeerError) as refused:
        read_question(header)
    assert str(refused.value).isprintable()


def test_an_error_that_a_client_tells_is_one_line() -> None:
    reply = read_reply('{"kind":"refused","why":"failed","error":"RuntimeError:\\nline two\\u2028three"}')
    assert reply == Refused(why="failed", error="RuntimeError: line two three")
