"""`python -m dml.cli`."""

from dml.cli import program

program()
