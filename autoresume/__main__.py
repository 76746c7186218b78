"""python -m autoresume."""

from autoresume.cli import main

main()
