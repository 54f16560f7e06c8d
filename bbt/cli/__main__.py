"""This module lets `python -m bbt.cli` stand for `bbt`."""

from bbt.cli import main

main()
