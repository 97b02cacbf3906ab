"""What both ends of a link remember of each sample, with a cap and an order of leaving that both follow."""

import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from halfback.codecs.protocol import Parts, State
from halfback.errors import UserError


@dataclass(frozen=True)
class _Entry:
    size: int
    check: int


@final
class Cache:
    """Tensors by sample id, at most `cap` bytes of them; the least recently used leave first.

    `size` of an entry is what the *receiver* stores, and `check` a checksum of what was *sent* for it: the two ends
    hold different things (a sketch, the values) and still keep one order, drop the same entries and have one digest.
    """

    def __init__(self, cap: int | None, folder: Path | None) -> None:
        """`folder`: keep the tensors there, memory-mapped when they are read; None keeps them in memory."""
        self._cap = cap
        self._folder = folder
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._values: dict[int, Parts] = {}
        self._bytes = 0
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed; the checkpoint has what counts
            folder.mkdir(parents=True)

    def __contains__(self, sample: int) -> bool:
        return sample in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def tensors(self) -> list[Tensor]:
        """What is held in memory."""
        return [tensor for parts in self._values.values() for tensor in parts]

    def get(self, sample: int) -> Parts:
        """The tensors of a sample that is there."""
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
            named = {str(place): part.cpu().contiguous() for place, part in enumerate(parts)}
            try:
                save_file(named, self._folder / str(sample))
            except (OSError, SafetensorError) as error:
                raise UserError(f"codec temporal: {self._folder} can't be written: {error}") from None
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
        tensors = {f"{sample}.{n}": t for sample in self._entries for n, t in enumerate(self.get(sample))}
        return tensors, {"entries": [[sample, e.size, e.check] for sample, e in self._entries.items()]}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        self.clear()
        parts: dict[int, dict[int, Tensor]] = {}
        for name, tensor in tensors.items():
            sample, place = name.split(".")
            parts.setdefault(int(sample), {})[int(place)] = tensor
        if not all(type(number) is int and number >= 0 for entry in values["entries"] for number in entry):
            raise UserError("codec temporal: what is remembered of a sample must be whole numbers")
        if sorted(parts) != sorted(entry[0] for entry in values["entries"]):
            raise UserError("codec temporal: the samples that are remembered are not those that have tensors")
        for sample, size, check in values["entries"]:
            held = parts[sample]
            self.put(sample, tuple(held[n] for n in range(len(held))), size=size, check=check)

    def _drop(self, sample: int) -> None:
        self._bytes -= self._entries.pop(sample).size
        if self._folder is None:
            del self._values[sample]
        else:
            (self._folder / str(sample)).unlink()
