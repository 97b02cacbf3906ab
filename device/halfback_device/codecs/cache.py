"""What both ends of a link remember of each sample, with a cap and an order of leaving that both follow."""

import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from halfback_device.codecs.protocol import Parts, State
from halfback_device.errors import DeviceError
from halfback_device.messages import Array


@dataclass(frozen=True)
class _Entry:
    size: int
    check: int


@final
class Cache:
    """Arrays by sample id, at most `cap` bytes of them; the least recently used leave first.

    `size` of an entry is what the *receiver* stores, and `check` a checksum of what was *sent* for it: the two ends
    hold different things (a sketch, the values) and still keep one order, drop the same entries and have one digest.
    """

    def __init__(self, cap: int | None, folder: Path | None) -> None:
        """`folder`: keep the arrays there; None keeps them in memory."""
        self._cap = cap
        self._folder = folder
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._values: dict[int, Parts] = {}
        self._bytes = 0
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed; the state has what counts
            folder.mkdir(parents=True)

    def __contains__(self, sample: int) -> bool:
        return sample in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, sample: int) -> Parts:
        """The arrays of a sample that is there."""
        if self._folder is None:
            return self._values[sample]
        found = load_file(self._folder / str(sample))
        return tuple(found[name] for name in sorted(found))

    def touch(self, sample: int) -> None:
        """The sample was used: it is the last to leave now."""
        self._entries.move_to_end(sample)

    def put(self, sample: int, parts: Parts, *, size: int, check: int) -> None:
        """Remembers a sample and drops others until the cap holds."""
        if sample in self._entries:
            self._drop(sample)
        self._entries[sample] = _Entry(size, check)
        self._bytes += size
        if self._folder is None:
            self._values[sample] = parts
        else:
            try:
                save_file({str(place): part for place, part in enumerate(parts)}, self._folder / str(sample))
            except (OSError, SafetensorError) as error:
                raise DeviceError(f"codec temporal: {self._folder} can't be written: {error}") from None
        while self._cap is not None and self._bytes > self._cap and len(self._entries) > 1:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Forgets everything."""
        for sample in list(self._entries):
            self._drop(sample)

    def digest(self) -> int:
        """A signed 64-bit digest of which samples are here, in which order, and what was sent for them."""
        digest = blake2b(digest_size=8)
        for sample, entry in self._entries.items():
            digest.update(b"%d %d %d\n" % (sample, entry.size, entry.check))
        return int.from_bytes(digest.digest(), "little", signed=True)

    def state(self) -> State:
        """Everything, for a checkpoint."""
        arrays = {f"{sample}.{n}": a for sample in self._entries for n, a in enumerate(self.get(sample))}
        return arrays, {"entries": [[sample, e.size, e.check] for sample, e in self._entries.items()]}

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        self.clear()
        parts: dict[int, dict[int, Array]] = {}
        for name, array in arrays.items():
            sample, place = name.split(".")
            parts.setdefault(int(sample), {})[int(place)] = array
        for sample, size, check in values["entries"]:
            held = parts[sample]
            self.put(sample, tuple(held[n] for n in range(len(held))), size=size, check=check)

    def _drop(self, sample: int) -> None:
        self._bytes -= self._entries.pop(sample).size
        if self._folder is None:
            del self._values[sample]
        else:
            (self._folder / str(sample)).unlink()
