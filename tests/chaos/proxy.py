"""Owns what lies between the control plane and its tracker: a proxy that may refuse, dawdle, or lose an answer."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Mood = Literal["honest", "failing", "dead", "slow", "mute"]
"""`failing`: answers 500 and asks nobody; `dead`: hangs up, and asks nobody either; `slow`: first waits; `mute`: passes the
request on and hangs up before the answer."""
SLOW_S = 6.0
"""Longer than the storms' `orch` waits for an answer: what it gives up may arrive after its next try."""
BATCH, POINT = "/runs/log-batch", b'"step"'
HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}
"""Headers that are about one connection."""


class Proxy:
    """Listens on the loopback and passes requests on to `target`, in the mood that it is in."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.mood: Mood = "honest"
        self.asked = self.hurt = 0
        """Requests in all, and those that met another mood than `honest`."""
        self.ambush: Mood | None = None
        """The mood that the next batch of points brings about."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="proxy", daemon=True).start()

    @property
    def port(self) -> int:
        """Of the proxy."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _pass(self) -> None:
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if proxy.ambush is not None and self.path.endswith(BATCH) and POINT in body:
            proxy.mood, proxy.ambush = proxy.ambush, None
        mood = proxy.mood
        proxy.asked, proxy.hurt = proxy.asked + 1, proxy.hurt + (mood != "honest")
        if mood == "failing":
            self.send_error(500)
            return
        if mood == "dead":
            self.close_connection = True
            return
        if mood == "slow":
            time.sleep(SLOW_S)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        connection = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=60)
        try:
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # there is nobody behind us
            return
        finally:
            connection.close()
        if mood == "mute":
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        with suppress(ConnectionError):  # whoever asked may have been killed
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # the server's names
