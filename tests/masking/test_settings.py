"""The section `secure` of a recipe, and how many of a cohort have to stay."""

import re

import pytest

from halfback import config
from halfback.errors import UserError
from halfback.masking.settings import Secure

DIGITS = ["algorithm.name=ho_sfl", "task.name=digits", "model={name: resnet8, cut: 2}"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("secure.threshold=1", "secure.threshold=1: 2 or more are allowed, or null"),
        ("secure.range=0", "secure.range=0: more than 0 and at most 1048576 is allowed"),
        ("secure.range=2e6", "secure.range=2e+06: more than 0 and at most 1048576 is allowed"),
        ("secure.bits=16", "secure.bits"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(setting: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        config.resolve(None, [*DIGITS, setting])
    assert "\n" not in str(refused.value)


def test_two_thirds_have_to_stay_and_three_at_least() -> None:
    assert [Secure().threshold_of(cohort) for cohort in (3, 4, 5, 6, 7, 10, 30)] == [3, 3, 4, 4, 5, 7, 20]
    assert Secure(threshold=2).threshold_of(3) == 2
