"""A collector on loopback: takes OTLP over HTTP, decodes it with opentelemetry-proto, keeps it."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """What came; `status` is what is answered, `gate` holds answers back while it is cleared."""

    def __init__(self) -> None:
        self.status = 200
        self.location = ""
        self.gate = threading.Event()
        self.gate.set()
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}
        self.resources: list[dict[str, Any]] = []
        self.schema_urls: set[str] = set()
        self.headers: list[dict[str, str]] = []
        self.raw = b""
        self.paths: list[str] = []
        """One a sending."""
        self.changed = threading.Condition()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sendings(self) -> int:
        return len(self.paths)

    def wait(self, enough: Any, timeout_s: float = 20.0) -> None:
        """Return when `enough()` holds. Raises AssertionError."""
        with self.changed:
            assert self.changed.wait_for(enough, timeout_s), (len(self.spans), sorted(self.metrics), self.paths)

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        with self.changed:
            self.paths.append(path)
            self.headers.append(headers)
            self.raw += body
            if self.status == 200:
                self._keep(path, body)
            self.changed.notify_all()

    def _keep(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append(plain(resource.resource.attributes))
                for scope in resource.scope_spans:
                    self.schema_urls.add(scope.schema_url)
                    self.spans += scope.spans
        elif path == "/v1/metrics":
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    self.schema_urls.add(scope.schema_url)
                    self.metrics |= {metric.name: metric for metric in scope.metrics}
        else:
            raise AssertionError(path)


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as Python values."""

    def value(any_value: Any) -> Any:
        kind = any_value.WhichOneof("value")
        inner = getattr(any_value, kind)
        return [value(each) for each in inner.values] if kind == "array_value" else inner

    return {each.key: value(each.value) for each in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            collector.gate.wait(20)
            try:
                self.send_response(collector.status)
                if collector.location:
                    self.send_header("Location", collector.location)
                self.send_header("Content-Length", "0")
                self.end_headers()
            except OSError:
                pass  # nobody waits for it any more

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    collector.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.gate.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
