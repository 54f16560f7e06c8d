"""`python -m bbt.cli`."""

from bbt.cli import main

main()
