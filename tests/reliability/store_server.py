"""An S3 server on the loopback, in this process, that answers wrongly when it is told to."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any
from unittest import mock

import fsspec
from fairseq2.file_system import FileSystemRegistry
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from d2v_plugin.core import store
from d2v_plugin.core.remote import RemotePath, place

SECRET = "moto-wants-no-secret-but-this-is-one"
PATIENCE = 1.0
"""Seconds after which the client gives up an answer."""

PAUSE = 0.01
"""Seconds before it asks again for the first time."""


class FaultyServer:
    """moto's server, with faults for the next requests: ``503``, ``late`` (no answer in time), ``slow`` (just in time) or
    ``cut`` (half of the body)."""

    def __init__(self) -> None:
        self.faults: deque[str] = deque()
        self.num_faults = 0
        self.most_open = 0
        """Requests that were answered at the same time."""
        self._num_open = 0
        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        try:
            fault = self.faults.popleft()
        except IndexError:
            fault = ""
        self.num_faults += bool(fault)
        if fault == "503":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        self._num_open += 1
        self.most_open = max(self.most_open, self._num_open)
        time.sleep({"late": 1.3, "slow": 0.3}.get(fault, 0.0) * PATIENCE)
        body = b"".join(self._app(environ, start))
        self._num_open -= 1
        return [body[: len(body) // 2]] if fault == "cut" else [body]

    def bucket(self, name: str) -> RemotePath:
        """A new bucket."""
        store.open_store("s3").mkdir(name)
        path = place(f"s3://{name}")
        assert isinstance(path, RemotePath)
        return path


def environment_of(url: str) -> dict[str, str]:
    """What lets a client find the server."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def be_impatient() -> None:
    """Let clients of this process give up soon, and leave repeating to us."""
    config = {"read_timeout": PATIENCE, "connect_timeout": PATIENCE, "retries": {"max_attempts": 0}}
    fsspec.config.conf["s3"] = {"config_kwargs": config}
    fsspec.get_filesystem_class("s3").retries = 1
    store._FIRST_PAUSE = PAUSE  # type: ignore[misc]


@contextmanager
def running_server() -> Iterator[FaultyServer]:
    """A server that clients of this process find."""
    server = FaultyServer()
    pause = mock.patch.object(store, "_FIRST_PAUSE", PAUSE)
    with mock.patch.dict(os.environ, environment_of(server.url)), mock.patch.dict(fsspec.config.conf), pause:
        be_impatient()
        # Clients of before know another place.
        store.open_store.cache_clear()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        with mock.patch.object(FileSystemRegistry, "_resolvers", []), mock.patch.object(FileSystemRegistry, "_fs_cache", {}):
            store.teach_fairseq2.cache_clear()
            yield server
    store.open_store.cache_clear()
    store.teach_fairseq2.cache_clear()
