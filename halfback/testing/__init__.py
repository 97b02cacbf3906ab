"""The conformance table: what every algorithm, of this package or another, is held against."""

from halfback.testing.command import Check, Checks, check

__all__ = ["Check", "Checks", "check"]
