"""Servers on 127.0.0.1 that an S3 client meets on a bad day: silent, slow, wrong, or cut off."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_HEAD_END = b"\r\n\r\n"


@contextmanager
def serving(answer: Callable[[socket.socket], None], *, receive_bytes: int | None = None) -> Iterator[str]:
    """The address of a server that gives each connection to a function, in a thread, and then closes it.

    Args:
        answer: of one connection.
        receive_bytes: the size of the receive buffer; None: the system's.
    """

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            answer(connection)
            connection.shutdown(socket.SHUT_RDWR)  # another thread may still read, and hold it open

    def accept() -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        if receive_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def refusing(status: int, code: str, message: str) -> Callable[[socket.socket], None]:
    """An answer as S3 refuses."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return saying(status, "application/xml", body)


def saying(status: int, content_type: str, body: str) -> Callable[[socket.socket], None]:
    """One answer to whatever is asked."""

    def answer(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        head = f"HTTP/1.1 {status} Status\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Connection: close\r\n\r\n{body}".encode())

    return answer


def silent(connection: socket.socket) -> None:
    """Reads, and never says a word."""
    while connection.recv(1 << 16):
        pass


class Relay:
    """A server before a real one; can be told to be slow, to fall silent, or to cut its answers off.

    Args:
        address: of the real server.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self.delay_s = 0.0
        """Before each answer."""
        self.upload_bytes_per_s = 0
        """0: no limit."""
        self.is_silent = False
        self.cut_after_bytes: int | None = None
        """Of an answer; None: it is whole."""
        self.num_connections = 0

    def __call__(self, client: socket.socket) -> None:
        self.num_connections += 1
        with socket.create_connection((self._host, self._port)) as server:
            threading.Thread(target=self._upload, args=(client, server), daemon=True).start()
            sent = 0
            while block := server.recv(1 << 14):
                if self.is_silent:
                    silent(client)
                    return
                time.sleep(self.delay_s if not sent else 0)
                if self.cut_after_bytes is not None and sent + len(block) > self.cut_after_bytes:
                    client.sendall(block[: self.cut_after_bytes - sent])
                    return
                client.sendall(block)
                sent += len(block)

    def _upload(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while block := client.recv(1 << 12 if self.upload_bytes_per_s else 1 << 16):
                if self.upload_bytes_per_s:
                    time.sleep(len(block) / self.upload_bytes_per_s)
                server.sendall(block)
            server.shutdown(socket.SHUT_WR)
