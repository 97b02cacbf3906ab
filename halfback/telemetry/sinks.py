"""Where records go as they come: a file of JSON lines, TensorBoard."""

import os
from pathlib import Path
from typing import Protocol

from halfback.errors import UserError
from halfback.telemetry.records import RECORDS, Record, mend_records, writing


class Sink(Protocol):
    """Takes each record once, in order."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Appends to the run's `records.jsonl`; each record is in the file when `write` returns.

    Raises:
        UserError: the file that is there already is unreadable or wrong before its last line, or can't be written.
    """

    def __init__(self, folder: Path) -> None:
        mend_records(folder)
        self._path = Path(folder) / RECORDS
        with writing(self._path):
            self._file = self._path.open("a", encoding="utf-8", newline="\n")

    def write(self, record: Record) -> None:
        with writing(self._path):
            self._file.write(record.to_json() + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())  # a checkpoint, which follows, is held against it

    def close(self) -> None:
        with writing(self._path):
            self._file.close()


class TensorBoard:
    """Writes the curves to `tensorboard/` in the run's folder, against steps.

    `resumed_at`: on resume, the step to go on from; TensorBoard hides what a killed run had written from there on.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("TensorBoard is not installed: pip install 'halfback[tensorboard]'") from None
        self._writer = SummaryWriter(log_dir=str(Path(folder) / "tensorboard"), purge_step=resumed_at)

    def write(self, record: Record) -> None:
        curves = {
            "loss/train": record.train_loss,
            "loss/validation": record.validation_loss,
            "metric": record.metric,
            "bytes/up": record.up_bytes,
            "bytes/down": record.down_bytes,
            "seconds/client": record.client_seconds,
            "seconds/server": record.server_seconds,
            "seconds/wire": record.wire_seconds,
            "seconds/wall": record.wall_seconds,
            "seconds/simulated": record.simulated_seconds,
            "forward_passes": record.forward_passes,
        }
        for name, value in curves.items():
            if value is not None:
                self._writer.add_scalar(name, value, record.step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
