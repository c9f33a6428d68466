"""A web server on this machine that behaves as badly as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

POLL_S = 0.01  # how long it takes to see that it is to end; half a second, unless told


class Server:
    """Serves the files of ``folder``; each request takes the next of ``faults``, if any is left.

    A fault is ``"403"`` or another status, ``"stall"`` (half, then silence), ``"cut"`` (half, then
    the connection ends), ``"silent"`` (no answer), ``"page"`` (a web page with status 200) or
    ``"ok"``. ``ranges`` says whether it knows them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[str] = []
        self.asked: list[tuple[str, str | None]] = []
        self.ranges = True
        self.released = threading.Event()
        self.url = ""

    def urls(self, name: str) -> dict[str, list[str]]:
        """What ``dumps`` says of a file here."""
        return {"urls": [f"{self.url}/{name}"]}


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A :class:`Server` as long as the block lasts."""
    state = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.strip("/"), self.headers.get("Range")
            state.asked.append((name, wanted))
            fault = state.faults.pop(0) if state.faults else "ok"
            content = (state.folder / name).read_bytes()
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            if fault.isdigit():
                self.send_error(int(fault))
            elif fault == "silent":
                state.released.wait(20)
            elif fault == "page":
                self.answer(200, b"<html>Please log in</html>")
            elif start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
            else:
                whole = content[start:]
                sent = whole if fault == "ok" else whole[: len(whole) // 2]
                extra = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
                self.answer(206 if start else 200, sent, len(whole), extra if start else {})
                if fault == "stall":
                    state.released.wait(20)

        def answer(
            self, status: int, body: bytes, length: int = 0, extra: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(body)))
            for name, value in (extra or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
