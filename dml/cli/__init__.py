"""`dml`: one command per verb, one file per noun.

It parses, calls a flow or a room, and prints a table, or one JSON object.

Exit status: 0 done, 2 the user's mistake (one message, no traceback), 1 ours. What a verb does not need is
not imported: searching must not wait for Ray, MLflow or Prefect.
"""

import logging
import sys
from contextlib import nullcontext, redirect_stdout

from dml.cli import bench, datasets, indexes, models, reports, stack
from dml.cli.app import app, output, print_json
from dml.errors import DmlError

__all__ = ["app", "bench", "datasets", "indexes", "main", "models", "reports", "stack"]


def main() -> None:
    """Run the command line; every error becomes the exit status that says whose it is."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("dml").setLevel(logging.INFO)
    as_json = "--json" in sys.argv
    output.set(sys.stdout)
    try:
        # Stdout is for the answer alone: what libraries and Ray's workers print goes where the logs go.
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            app()
    except DmlError as error:
        print(f"error: {error}", file=sys.stderr)
        if as_json:
            print_json({"error": str(error)})
        sys.exit(2)
