"""What others' parts are held against: the conformance table of algorithms, and a check for each other kind of part."""

from halfback.testing.checks import check_codec as check_codec
from halfback.testing.checks import check_controller as check_controller
from halfback.testing.checks import check_family as check_family
from halfback.testing.checks import check_task as check_task
