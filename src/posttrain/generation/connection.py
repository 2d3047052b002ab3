"""Connections to a server that end when its machine, or the way to it, is gone.

An answer may take an hour, and a machine without power closes no connection: who waits for it would wait as long, or
for ever where the client sets no time-out. So the kernel asks the other machine now and then while nothing else is
sent; it answers for a server that computes, and for one that stands still.
"""

import socket
import sys
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

IDLE_SECONDS, INTERVAL_SECONDS, PROBES = 30, 10, 3
LOST_SECONDS = IDLE_SECONDS + INTERVAL_SECONDS * PROBES  # without a sign of the machine; a shorter cut costs nothing
CONNECT_SECONDS = 10
Option = tuple[int, int, int]


def keepalive() -> list[Option]:
    """Options of a socket; other systems than Linux ask by clocks of their own."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if sys.platform == "linux":
        tcp = socket.IPPROTO_TCP
        options += [
            (tcp, socket.TCP_KEEPIDLE, IDLE_SECONDS),
            (tcp, socket.TCP_KEEPINTVL, INTERVAL_SECONDS),
            (tcp, socket.TCP_KEEPCNT, PROBES),
            (tcp, socket.TCP_USER_TIMEOUT, LOST_SECONDS * 1000),  # of a request that was sent and not acknowledged
        ]
    return options


class KeepaliveAdapter(HTTPAdapter):
    """requests' adapter whose connections notice a lost machine; none is waited for without an end."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        both = [*HTTPConnection.default_socket_options, *keepalive()]
        super().init_poolmanager(*arguments, **options, socket_options=both)

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        if options.get("timeout") is None:
            options["timeout"] = (CONNECT_SECONDS, None)
        return super().send(request, *arguments, **options)


def keep_alive(session: requests.Session) -> None:
    """Give a session such connections, with the retries that it has."""
    for prefix, theirs in list(session.adapters.items()):
        ours = KeepaliveAdapter(max_retries=theirs.max_retries, pool_maxsize=theirs._pool_maxsize)
        session.mount(prefix, ours)
