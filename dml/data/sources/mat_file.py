"""MATLAB's files, read in a process of their own: SciPy's reader ends its process where one is damaged."""

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
        content: of the file.
        name: of the file, for the message.

    Returns:
        Name to values: a list of objects for an array of structs, else a list of whole numbers and texts.

    Raises:
        InvalidData: no such file, a damaged one, or one that takes more than 8 GiB or 5 minutes to unpack.
    """
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(command, input=content, env=env, capture_output=True, timeout=_TIMEOUT_S)
        if done.returncode == 0:
            variables: dict[str, Any] = json.loads(done.stdout)
            return variables
        why = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["its reader broke down"]
    except (subprocess.TimeoutExpired, ValueError) as error:
        why = [str(error)]
    raise InvalidData(f"{name} must be a whole MATLAB file; it is not: {why[0]}. Download it again.")


def main() -> None:
    """Standard input's variables as JSON."""
    import resource

    from scipy.io import loadmat

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    content: Any = io.BytesIO(sys.stdin.buffer.read())
    found = loadmat(content, squeeze_me=True)
    json.dump({k: _plain(v) for k, v in found.items() if not k.startswith("__")}, sys.stdout)


def _plain(values: Any) -> list[Any]:
    import numpy as np

    rows = np.atleast_1d(values)
    if rows.dtype.names:
        return [{name: _value(row[name]) for name in rows.dtype.names} for row in rows]
    return [_value(value) for value in rows]


def _value(value: Any) -> int | str:
    import numpy as np

    return int(value) if isinstance(value, int | np.integer) else str(value)
