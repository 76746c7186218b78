"""The demo: `make demo`, or `python -m demo`."""
