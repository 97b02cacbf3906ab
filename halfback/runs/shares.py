"""The rows of a run's clients as files that devices read, one for each: what `partition` gives each, and no more."""

import json
from pathlib import Path

import numpy as np

from halfback.assembly import Built
from halfback.assembly.given import NOTHING
from halfback.assembly.whole import raw_rows
from halfback.data.tasks import RawSplit


def write_shares(built: Built, folders: list[Path]) -> list[list[str]]:
    """Writes each client's training rows into a folder of its own.

    Args:
        built: the run.
        folders: of its clients, in the order of their numbers.

    Returns:
        For each client the words by which `halfback-device` is told where its rows are, and their columns.
    """
    names, held = built.task.label_names, built.task.train.contents()
    texts = None if "images" in held else raw_rows(built.config, NOTHING).train
    words = []
    for number, folder in enumerate(folders):
        mine = built.clients.sources[number].rows
        if texts is None:
            labels = np.array([names[label] for label in held["labels"][mine].tolist()])
            np.savez(folder / "rows.npz", images=held["images"][mine].numpy(), labels=labels)
            words.append(["--data", str(folder / "rows.npz")])
        else:
            columns = _columns(texts, names)
            lines = [json.dumps({column: values[row] for column, values in columns.items()}) for row in mine.tolist()]
            (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            named = [word for column in columns for word in (f"--{column}", column)]
            words.append(["--data", str(folder / "rows.jsonl"), *named])
    return words


def _columns(texts: RawSplit, names: list[str]) -> dict[str, list[str]]:
    """What a device reads of rows of texts, by the column's name, which is what it is for."""
    labels = [names[label] for label in texts.labels.tolist()] if names else None
    found = {"text": texts.texts, "pair": texts.pairs, "label": labels, "target": texts.targets}
    return {column: values for column, values in found.items() if values is not None}
