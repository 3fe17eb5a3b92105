"""A port for a server that is started later."""

import random
import socket

_FIRST, _LAST = 20_000, 32_000


def free_port() -> int:
    """A port of this machine that nobody listens at, and that no client is given meanwhile.

    Of the numbers that the system gives to outgoing connections (32768 on), and to servers that ask for any,
    one could be taken before the server that it is for has started; Ray's workers take 10002 to 19999.
    """
    chance = random.SystemRandom()  # another one in each process, whatever a test has seeded
    while True:
        port = chance.randrange(_FIRST, _LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
