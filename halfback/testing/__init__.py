"""What others' parts are held against: the conformance table of algorithms, and a check for each other kind of part."""

from halfback.testing.checks import check_codec, check_controller, check_family, check_task
from halfback.testing.command import Check, Checks, check

__all__ = ["Check", "Checks", "check", "check_codec", "check_controller", "check_family", "check_task"]
