"""Writes three classification tasks on which no rate of this project was chosen, as CSV files with `text` and `label`.

    python benchmarks/other_tasks.py DATA OUT    # DATA: the folder of data sets (HALFBACK_DATA); OUT gets the files

movies    the sentiment of movie sentences (`vader_sentiment/movies`).
triples   how many facts a sentence tells (`webnlg`): 1, 2, 3, 4, or 5 and more.
rating    what a restaurant's description says of its customers' rating (`e2e`): low, middle, high, or nothing.

The labels of the last two are in the columns that the sentences were written from, so they need no annotation of ours.
Each is at most 8,000 training and 1,500 validation rows, drawn by a fixed seed from the splits of their own.
"""

import csv
import gzip
import random
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

_MOST = {"train": 8_000, "validation": 1_500}
_RATING = {
    "low": "low",
    "1 out of 5": "low",
    "average": "middle",
    "3 out of 5": "middle",
    "high": "high",
    "5 out of 5": "high",
}


def rated(row: Mapping[str, str]) -> tuple[str, str]:
    """Of a row of `e2e`: its text, and what its attributes say of the rating."""
    found = re.search(r"customer rating\[([^]]*)\]", row["input"])
    return row["target"], "nothing" if found is None else _RATING[found[1]]


def counted(row: Mapping[str, str]) -> tuple[str, str]:
    """Of a row of `webnlg`: its text, and how many triples it tells."""
    count = int(row["n_triples"])
    return row["target"], str(count) if count < 5 else "5 or more"


TASKS: dict[str, tuple[str, Callable[[Mapping[str, str]], tuple[str, str]]]] = {
    "movies": ("vader_sentiment/movies", lambda row: (row["text"], row["label"])),
    "triples": ("webnlg", counted),
    "rating": ("e2e", rated),
}


def main(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, (folder, labelled) in TASKS.items():
        for split, most in _MOST.items():
            with gzip.open(data / folder / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as file:
                rows = list(dict.fromkeys(labelled(row) for row in csv.DictReader(file)))
            random.Random(0).shuffle(rows)
            with (out / f"{name}-{split}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows[:most]])
            print(f"{name} {split}: {len(rows[:most])} rows, {len({label for _, label in rows})} classes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
