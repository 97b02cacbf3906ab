"""`python -m halfback` is the command line."""

from halfback.cli import main

main()
