"""Which row of a checkpoint's classification head is which of the data's classes."""

import logging
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from halfback.errors import UserError, one_line
from halfback.models.fitting import FoundHead

log = logging.getLogger(__name__)


def own_names(name: str, written: Mapping[str, Any]) -> list[str]:
    """The classes of a checkpoint by the rows of its head, from its config.json as it is written; empty for none.

    What `id2label` leaves without a name of its own (LABEL_0, LABEL_1, …) `label2id` may name.

    Raises:
        UserError: the two contradict each other, or don't number the classes from 0.
    """
    given, inverse = written.get("id2label") or {}, written.get("label2id") or {}
    try:
        names = {int(row): str(label) for row, label in given.items()}
        rows = {str(label): int(row) for label, row in inverse.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"model {name!r}: id2label and label2id in config.json must number names") from None
    if _unnamed(list(names.values())) and not _unnamed(list(rows)):
        names = {row: label for label, row in rows.items()}
    if sorted(names) != list(range(len(names))):
        raise UserError(f"model {name!r}: id2label in config.json must number its classes from 0, not {sorted(names)}")
    for label, row in rows.items():
        if label in names.values() and names.get(row) != label and not _unnamed(list(rows)):
            raise UserError(
                f"model {name!r}: config.json contradicts itself: by label2id {label!r} is {row}, by id2label {row} is "
                f"{names.get(row)!r}; correct one of them"
            )
    return [names[row] for row in range(len(names))]


def match_rows(own: Sequence[str], ours: Sequence[str]) -> tuple[list[int] | None, str | None]:
    """Finds for each of our classes the row of the head that is its own, and what there is to say of that.

    Either is None where there is none: the rows where the head is for other classes, the remark where all is plain.

    The same names in any order and in any letter case match. Whole numbers from 0 are the numbers of the rows. Where
    the checkpoint has no names (LABEL_0, LABEL_1, …), its rows are our classes in the order of these numbers.
    """
    theirs, mine = [_plain(label) for label in own], [_plain(label) for label in ours]
    order = list(range(len(ours)))
    if len(own) != len(ours):
        return None, f"it has {len(own)} classes, the data have {len(ours)}"
    if sorted(own) == sorted(ours) and len(set(ours)) == len(ours):
        rows = [own.index(label) for label in ours]
    elif sorted(theirs) == sorted(mine) and len(set(mine)) == len(mine):
        rows = [theirs.index(label) for label in mine]
    elif sorted(ours) == sorted(map(str, order)):
        rows = [_numbered(own)[int(label)] for label in ours]
        return rows, None if _unnamed(own) else f"its classes are {_some(own)}: the data's numbers are taken as theirs"
    elif _unnamed(own):
        return _numbered(own), f"it has no names for its classes ({_some(own)}): taken as {_some(ours)}, in this order"
    else:
        return None, f"its classes are {_some(own)}, the data's are {_some(ours)}"
    return rows, None if rows == order else f"its classes are {_some(own)}: their rows are put in the data's order"


def settle_head(
    name: str, found: FoundHead, own: Sequence[str], ours: Sequence[str], anew: Callable[[nn.Linear], None]
) -> None:
    """Puts a head that came with the weights in the order of our classes, in place; what is not plain is logged.

    It is drawn `anew` where it is for other classes, or not whole.

    own: the checkpoint's classes by row, from `own_names`. ours: empty if they are not known.
    """
    rows: list[int] | None = None
    remark: str | None = f"not all of it is in the file, and {found.layer.out_features} classes are needed"
    if found.state == "whole":
        if not ours:
            return
        rows, remark = match_rows(own or [f"LABEL_{row}" for row in range(found.layer.out_features)], ours)
    elif found.rows not in (None, found.layer.out_features):
        remark = f"it has {found.rows} classes, the data have {found.layer.out_features}"
    if rows is not None:
        order_rows(found.layer, rows)
    elif found.state != "new":
        anew(found.layer)
    if remark is not None and ours and found.rows is not None:
        log.info("model %r: the head%s: %s", name, " starts anew" if rows is None else "", remark)


def order_rows(layer: nn.Linear, rows: Sequence[int]) -> None:
    """Puts the rows of a head's last layer, weights and biases, in another order, in place."""
    for parameter in layer.parameters():
        parameter.data = torch.stack([parameter.data[row] for row in rows])


def _unnamed(labels: Sequence[str]) -> bool:
    return all(re.fullmatch(r"LABEL_\d+", label) for label in labels)


def _numbered(own: Sequence[str]) -> list[int]:
    """The rows by the numbers in their names where they have no others (LABEL_1 before LABEL_0), else as they are."""
    return sorted(range(len(own)), key=lambda row: int(own[row].removeprefix("LABEL_")) if _unnamed(own) else row)


def _plain(label: str) -> str:
    return " ".join(unicodedata.normalize("NFC", label).split()).casefold()


def _some(labels: Sequence[str]) -> str:
    return one_line(", ".join(labels[:6])) + (", …" if len(labels) > 6 else "")
