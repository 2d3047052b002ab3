"""Who may use a server: whoever sends the token of POSTTRAIN_SERVER_TOKEN, where there is one.

vLLM's own key guards `/v1` alone and shows in the process list; the endpoints that replace weights stay open beside it.
So `RequireToken` stands before every path, and the token comes from the environment only, on both sides.
"""

import hashlib
import hmac
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import requests
from requests.auth import AuthBase

from posttrain.errors import PosttrainError
from posttrain.generation.connection import keep_alive

TOKEN = "POSTTRAIN_SERVER_TOKEN"
LEAST = 16  # characters: `openssl rand -hex 32` writes 64
OPEN_PATH = "/health"  # says that a server is up, and nothing else
MIDDLEWARE = f"{__name__}.RequireToken"  # for vLLM's --middleware
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class TokenError(PosttrainError):
    """A token that is no secret, or none where there must be one."""


def token() -> str | None:
    """The token of the environment, None where there is none; raises TokenError for one that is no secret."""
    value = os.environ.get(TOKEN)
    if not value:
        return None
    if len(value) < LEAST or not (value.isascii() and value.isprintable()) or " " in value:
        raise TokenError(
            f"{TOKEN}: has {len(value)} characters; expected at least {LEAST} of ASCII without spaces, as "
            f"`openssl rand -hex 32` writes them"
        )
    return value


class Bearer(AuthBase):
    """Sends the token; requests takes it off where an answer leads to another host."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if value := token():
            request.headers["Authorization"] = f"Bearer {value}"
        return request


def ask(method: str, url: str, **arguments: Any) -> requests.Response:
    """One request to a server of ours."""
    return requests.request(method, url, auth=Bearer(), **arguments)


def with_token(client: type) -> type:
    """A client class of TRL's whose session sends the token, and notices when the server's machine is gone."""

    class TokenClient(client):
        """TRL's VLLMClient; it has its session by the time it looks for the server."""

        def check_server(self, *arguments: Any, **options: Any) -> None:
            self.session.auth = Bearer()
            keep_alive(self.session)
            super().check_server(*arguments, **options)

    return TokenClient


class RequireToken:
    """An ASGI middleware: nobody passes without the token but to learn that the server is up."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        expected = token()
        if expected is None:
            raise TokenError(f"{TOKEN}: is not set, so nobody could use this server; export it")
        self.app, self.expected = app, _digest(f"Bearer {expected}".encode())

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        # The server's own start and end come this way, too.
        if scope["type"] == "lifespan" or scope.get("path") == OPEN_PATH or self.knows(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": f"this server asks for {TOKEN}".encode()})

    def knows(self, scope: Scope) -> bool:
        """Whether a request brings the token, in a time that says nothing of how near it came."""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(_digest(given[0]), self.expected)


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def address_towards(host: str) -> str:
    """The address of this machine on the way to `host`: what listens there is reached by that network alone."""
    family, kind, protocol, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:  # a datagram socket that is connected sends nothing
        probe.connect(where)
        return str(probe.getsockname()[0])
