"""A DICOMweb service in this process that sends what a test gives it, at its own speed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from wardround_client.pacs.node import Node
from wardround_client.site.pacs_config import PacsConfig

HEAD, QUERY = b"HTTP/1.1 200 OK\r\nContent-Type: ", b"application/dicom+json"


@contextmanager
def service(answer: bytes, trickle: bytes = b"") -> Iterator[Node]:
    """A web service that sends these bytes to any request, and then, ten times a second for 5 s, others."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(self.headers["Accept-Encoding"])
            self.close_connection = True
            try:
                self.wfile.write(answer)
                for _ in range(50 if trickle else 0):
                    self.wfile.write(trickle)
                    time.sleep(0.1)
            except OSError:
                pass

        def log_message(self, *words: object) -> None:
            pass

    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        config = PacsConfig(way="web", timeout_s=1, web={"url": f"http://127.0.0.1:{server.server_port}"})
        yield Node(name="archive", config=config, site=Path())
        server.shutdown()
    assert set(asked) == {"identity"}
