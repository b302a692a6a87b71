"""A proxy in front of a store that delays, refuses, cuts and stalls what it is told to."""

import collections
import dataclasses
import http.client
import http.server
import re
import threading
import time
import urllib.parse

HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclasses.dataclass
class Fault:
    """What happens to requests.

    Attributes:
      method, path: regular expressions of what it happens to; the path is unquoted and has the query.
      status: answered instead of asking the store; 0: the store is asked.
      cut: share of the body that is sent before the connection is closed.
      trickle_s: pause behind each byte.
      stall_s: pause before the answer.
      times: how often.
      skip: so many are let through before.
    """

    path: str = ""
    method: str = "GET"
    status: int = 0
    cut: float | None = None
    trickle_s: float = 0.0
    stall_s: float = 0.0
    times: float = float("inf")
    skip: int = 0

    def happens_to(self, method: str, path: str) -> bool:
        return self.times > 0 and bool(re.fullmatch(self.method, method) and re.search(self.path, path))


class FaultProxy:
    """The proxy; `start` it with the port of the store."""

    def __init__(self):
        self.faults: list[Fault] = []
        self.delay_s = 0.0
        self.requests: list[tuple[str, str]] = []  # method, unquoted path with query
        self.counts: collections.Counter = collections.Counter()  # by name of what happened
        self.most_at_once = self._at_once = self.connections = 0
        self._lock = threading.Lock()
        self.store_port = self.full_port = 0
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def start(self, store_port: int) -> None:
        self.store_port = store_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Forget faults and what was seen."""
        self.faults, self.requests, self.delay_s = [], [], 0.0
        self.counts.clear()
        self.most_at_once = self.connections = 0

    def enter(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.happens_to(method, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    self.counts[f"{fault.status or 'fault'}"] += 1
                    return fault
        return None

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: FaultProxy

    def setup(self):
        super().setup()
        self.owner.connections += 1
        self._store = self._connect()

    def _connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.owner.store_port, timeout=60)

    def finish(self):
        super().finish()
        self._store.close()

    def log_message(self, *_):
        pass

    def _handle(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.owner.enter(self.command, urllib.parse.unquote(self.path))
        try:
            self._answer(body, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.owner.leave()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def _answer(self, body: bytes, fault: Fault | None) -> None:
        time.sleep(self.owner.delay_s + (fault.stall_s if fault else 0))
        if fault and fault.status:
            return self._send(fault.status, [("Content-Type", "application/json")], b'{"error":{"message":"injected"}}')
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS}
        if self._store.port != self.owner.store_port:
            self._store = self._connect()
        self._store.request(self.command, self.path, body or None, {**headers, "Content-Length": str(len(body))})
        response = self._store.getresponse()
        data = response.read()
        self._send(response.status, response.getheaders(), data, fault)

    def _send(self, status: int, headers, data: bytes, fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in HOP_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault and fault.cut is not None:
            self.wfile.write(data[: int(len(data) * fault.cut)])
            self.close_connection = True
        elif fault and fault.trickle_s:
            for i in range(len(data)):
                self.wfile.write(data[i : i + 1])
                time.sleep(fault.trickle_s)
        else:
            self.wfile.write(data)
