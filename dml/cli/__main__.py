"""`python -m dml.cli`."""

from dml.cli import main

main()
