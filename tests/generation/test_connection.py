"""Connections to a server notice a machine that is gone, for our own requests and for TRL's client."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from posttrain.generation.connection import LOST_SECONDS, keep_alive, keepalive
from posttrain.generation.vllm.access import with_token


@pytest.fixture
def url() -> Iterator[str]:
    class Health(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"up")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def options_of(session: requests.Session, url: str) -> list[tuple[int, int, int]]:
    """What the socket of an answer in progress is set to, of the options in question."""
    with session.get(url, stream=True) as answer:
        sock = answer.raw.connection.sock
        found = [(level, name, sock.getsockopt(level, name)) for level, name, _ in keepalive()]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # urllib3's own stays
        return found


def test_the_kernel_asks_after_a_silent_machine_and_retries_stay(url):
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=Retry(total=3), pool_maxsize=7))
        keep_alive(session)
        assert options_of(session, url) == keepalive()
        adapter = session.get_adapter(url)
        assert adapter.max_retries.total == 3 and adapter._pool_maxsize == 7
    assert 20 < LOST_SECONDS <= 60  # a link that is back after 20 s costs nothing


def test_trls_client_has_such_connections_before_it_asks_for_the_server(url):
    class Client:
        """As TRL's: a session first, then the look for the server."""

        def __init__(self) -> None:
            self.session = requests.Session()
            self.check_server()

        def check_server(self) -> None:
            self.found = options_of(self.session, url)

    assert with_token(Client)().found == keepalive()
