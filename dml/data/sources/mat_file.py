"""MATLAB files, read in a separate process, since SciPy's reader can crash on a damaged file."""

import io
import json
import os
import subprocess
import sys
from typing import Any

from dml.errors import InvalidData

_MEMORY_BYTES = 8 << 30
_TIMEOUT_S = 300


def read_mat(content: bytes, name: str) -> dict[str, Any]:
    """The variables of a file.

    Args:
        content: the file's bytes.
        name: the file's name, for the message.

    Returns:
        Values by name: a list of objects for an array of structs, else a list of integers and texts.

    Raises:
        InvalidData: not a MATLAB file, a damaged one, or one that needs more than 8 GiB or 5 minutes.
    """
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        completed = subprocess.run(command, input=content, env=env, capture_output=True, timeout=_TIMEOUT_S)
        if completed.returncode == 0:
            variables: dict[str, Any] = json.loads(completed.stdout)
            return variables
        messages = completed.stderr.decode(errors="replace").strip().splitlines()[-1:] or [
            "its reader crashed"
        ]
    except (subprocess.TimeoutExpired, ValueError) as error:
        messages = [str(error)]
    raise InvalidData(f"{name} must be a whole MATLAB file; it is not: {messages[0]}. Download it again.")


def main() -> None:
    """Convert the MATLAB file on standard input to JSON on standard output."""
    import resource

    from scipy.io import loadmat

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    content: Any = io.BytesIO(sys.stdin.buffer.read())
    variables = loadmat(content, squeeze_me=True)
    json.dump({k: _plain(v) for k, v in variables.items() if not k.startswith("__")}, sys.stdout)


def _plain(values: Any) -> list[Any]:
    import numpy as np

    rows = np.atleast_1d(values)
    if rows.dtype.names:
        return [{name: _value(row[name]) for name in rows.dtype.names} for row in rows]
    return [_value(value) for value in rows]


def _value(value: Any) -> int | str:
    import numpy as np

    return int(value) if isinstance(value, int | np.integer) else str(value)
