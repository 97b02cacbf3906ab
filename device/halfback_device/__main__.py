"""`python -m halfback_device` is the command `halfback-device`."""

from halfback_device.cli import main

main()
