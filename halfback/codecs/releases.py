"""How often values of each sample went out: counted before they do, in a file that no kill takes back.

A line of the file is a client and the samples of one message, and is on the disk before the message is made. So a step
that is done again after a kill counts again, as it must: both times something went out, or may have.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import final

from halfback.errors import UserError

RELEASED = "released.txt"  # in the folder of a run, or of a client of one
_LONGEST = 20  # digits of a number, with its sign


@final
class Releases:
    """What was released of the samples of all clients of one process.

    Attributes:
        most: of any one sample.
    """

    def __init__(self, file: Path | None = None) -> None:
        """`file`: where it is written, and goes on from where it is there; None keeps it in memory.

        Raises:
            UserError: the file is none that this class wrote.
        """
        self._file = file
        self._counts: Counter[tuple[int, int]] = Counter()
        self.most = 0
        if file is not None and file.exists():
            self._read(file)

    def of(self, client: int, sample: int) -> int:
        """How often values of this sample went out."""
        return self._counts[client, sample]

    def add(self, client: int, samples: Sequence[int]) -> None:
        """Counts each of the samples once more, on the disk before anything else.

        Raises:
            UserError: it can't be written, so nothing may be sent.
        """
        if not samples:
            return
        if self._file is not None:
            try:
                with self._file.open("a", encoding="ascii") as file:
                    file.write(" ".join(map(str, (client, *samples))) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise UserError(f"{self._file} can't be written: {error.strerror}; nothing was sent") from None
        self._count(client, samples)

    def _count(self, client: int, samples: Sequence[int]) -> None:
        for sample in samples:
            self._counts[client, sample] += 1
            self.most = max(self.most, self._counts[client, sample])

    def _read(self, file: Path) -> None:
        try:
            data = file.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):  # a kill cut its last line short, before anything of it was sent
                os.truncate(file, whole)
        except OSError as error:
            raise UserError(f"{file} can't be read: {error.strerror}") from None
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            words = line.split(b" ")
            if len(words) < 2 or not all(_is_number(word) for word in words):
                raise UserError(f"{file}, line {number}: the numbers of a client and of samples are allowed")
            client, *samples = map(int, words)
            self._count(client, samples)


def _is_number(word: bytes) -> bool:
    return len(word) <= _LONGEST and word.removeprefix(b"-").isdigit()
