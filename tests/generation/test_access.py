"""A server's token: who passes, who does not, where it is sent, and that nobody sees it."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.generation.vllm import access
from posttrain.generation.vllm.server import ServerError, serve_command, who_can_reach

SECRET = "0123456789abcdef0123456789abcdef"
PATHS = ("/", "/v1/models", "/collective_rpc", "/update_weights", "/sleep", "/health/", "/health/../pause", "//health")


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv(access.TOKEN, SECRET)


def answered(path: str, *headers: tuple[bytes, bytes], kind: str = "http") -> list[dict[str, Any]]:
    """What a guarded server, which says `inside`, answers to a request."""
    sent: list[dict[str, Any]] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "inside"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "path": path, "headers": list(headers)}
    asyncio.run(access.RequireToken(inside)(scope, None, send))
    return sent


def bearer(token: str) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {token}".encode())


@pytest.mark.parametrize("path", PATHS)
def test_no_path_but_health_is_open(path):
    assert answered(path, bearer(SECRET)) == [{"type": "inside"}]
    for headers in ([], [bearer("x")], [bearer(SECRET[:-1])], [bearer(SECRET), bearer("x")], [(b"x", SECRET.encode())]):
        start, body = answered(path, *headers)
        assert start["status"] == 401 and SECRET.encode() not in body["body"]


def test_health_and_the_servers_own_start_are_open():
    assert answered("/health") == [{"type": "inside"}]
    assert answered("", kind="lifespan") == [{"type": "inside"}]


def test_a_websocket_without_the_token_is_closed():
    assert answered("/v1/realtime", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert answered("/v1/realtime", bearer(SECRET), kind="websocket") == [{"type": "inside"}]


@given(st.binary(max_size=60))
def test_no_other_header_passes(value):
    if value != b"Bearer " + SECRET.encode():
        assert answered("/pause", (b"authorization", value))[0]["status"] == 401


@pytest.mark.parametrize(
    "weak", ["short", "a" * 15, "with a space in its middle", "geheimnis-für-alle-hier", "a" * 20 + "\n"]
)
def test_a_token_that_is_no_secret_is_refused_without_being_shown(weak, monkeypatch):
    monkeypatch.setenv(access.TOKEN, weak)
    with pytest.raises(access.TokenError, match="expected at least 16") as caught:
        access.token()
    assert weak not in str(caught.value)


def test_a_guarded_server_without_a_token_does_not_start(monkeypatch):
    monkeypatch.delenv(access.TOKEN)
    with pytest.raises(access.TokenError, match="nobody could use this server"):
        access.RequireToken(None)


class Echo(BaseHTTPRequestHandler):
    """Answers with the header it got, or leads to another host."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.path.rpartition('/')[2]}/")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(self.headers["Authorization"]).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def echo():
    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_the_token_is_sent_and_follows_to_no_other_host(echo, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("HOME", str(tmp_path))  # requests would send these instead of a plain header
    url = f"http://127.0.0.1:{echo}"
    assert access.ask("get", url).text == f"Bearer {SECRET}"
    assert access.ask("get", f"{url}/to/{echo}").text == "None"
    monkeypatch.delenv(access.TOKEN)
    assert SECRET not in access.ask("get", url).text


def test_the_token_is_on_no_command_line():
    recipe = {"model_name_or_path": "x"}
    command, environment = serve_command(recipe, None)
    assert command[command.index("--middleware") + 1] == "posttrain.generation.vllm.access.RequireToken"
    assert SECRET not in str(command) + str(environment)


def test_another_address_needs_the_flag_and_the_token(monkeypatch):
    values = {"vllm_server_host": "10.0.0.7"}
    with pytest.raises(ServerError, match="add --allow_other_machines and set POSTTRAIN_SERVER_TOKEN"):
        who_can_reach(values, allowed=False)
    said = who_can_reach(values, allowed=True)
    assert "/health to all" in said and "replace the weights" in said and SECRET not in said
    monkeypatch.delenv(access.TOKEN)
    with pytest.raises(ServerError, match="export POSTTRAIN_SERVER_TOKEN"):
        who_can_reach(values, allowed=True)
    assert "without a token" in who_can_reach({}, allowed=False)


def test_the_way_to_this_machine_is_loopback():
    assert access.address_towards("127.0.0.1") == "127.0.0.1"
