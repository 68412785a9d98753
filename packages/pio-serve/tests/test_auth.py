"""Who is let in: deny by default, whatever is routed."""

from __future__ import annotations

import hmac
import re

import pytest

from inference_pio.interfaces import ConfigError
from inference_pio.serve import KeyRing, ServerState, ServeSettings, create_app
from inference_pio.serve._app import build_router
from inference_pio.serve._auth import OPEN_PATHS
from inference_pio.serve._keys import read_key_file
from inference_pio.serve._routes import ROUTES

KEYS = ("a-first-key", "another-key-of-mine")
PATHS = sorted({re.sub(r"\{[^}]*\}", "name", route.path) for route in ROUTES})
OTHERS = [
    "/",
    "/docs",
    "/openapi.json",
    "/invocations",
    "/v1",
    "/v1/unknown",
    "/livez/",
    "//livez",
    "/LIVEZ",
    "/static/x.js",
]


@pytest.fixture(scope="module")
def app():
    return create_app(ServerState(ServeSettings(keys=KeyRing(KEYS))))


def test_table_is_all_that_is_routed():
    """The router serves the paths of the table and no others, so the tests below see every route."""
    router = build_router(ServerState(ServeSettings()), ROUTES)
    assert sorted({route.path for route in router.routes}) == sorted({route.path for route in ROUTES})


def test_one_path_is_open():
    """And it is the one that tells nothing."""
    assert {"/livez"} == OPEN_PATHS


@pytest.mark.parametrize("path", [*PATHS, *OTHERS])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS", "HEAD"])
def test_every_path_needs_a_key(ask_app, app, path, method):
    """Without a key, with a wrong one, and with a right one in the wrong scheme: 401, routed or not."""
    for headers in (
        [],
        [(b"authorization", b"Bearer wrong-key-1")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Basic " + KEYS[0].encode())],
        [(b"authorization", KEYS[0].encode())],
        [(b"x-api-key", b"")],
        [(b"cookie", b"key=" + KEYS[0].encode())],
    ):
        status, _, _ = ask_app(app, path, headers, method)
        assert status != 401 if path in OPEN_PATHS else status == 401


@pytest.mark.parametrize("key", KEYS)
def test_any_key_of_the_ring_opens(ask_app, app, key):
    """In either header; what lies behind is the application's business."""
    for headers in ([(b"authorization", b"bearer " + key.encode())], [(b"x-api-key", key.encode())]):
        assert ask_app(app, "/version", headers)[0] == 200


def test_no_key_is_asked_for_on_loopback(ask_app):
    """Where none is set."""
    assert ask_app(create_app(ServerState(ServeSettings())), "/version")[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "10.0.0.1"])  # noqa: S104 - refused
def test_other_addresses_need_a_key(host):
    """Or the explicit wish to do without."""
    with pytest.raises(ConfigError, match="no API key is set"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, keys=KeyRing(KEYS)).host == host
    assert ServeSettings(host=host, insecure_no_auth=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_loopback_needs_none(host):
    """Only this machine reaches it."""
    assert ServeSettings(host=host).host == host


def test_ring_holds_hashes_only():
    """What it keeps does not contain a key, and says which key it was without telling it."""
    ring = KeyRing(KEYS)
    assert not any(key in repr(vars(ring)) for key in KEYS)
    ids = {ring.key_id(key.encode()) for key in KEYS}
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{12}", one) for one in ids)
    assert ring.key_id(b"a-first-kez") is None


def test_comparison_does_as_much_for_every_key(monkeypatch):
    """The first, the last and none of many: each is compared with every key, in constant time, as a hash."""
    keys = [f"key-number-{index:05d}" for index in range(40)]
    ring = KeyRing(keys)
    compared = []
    real = hmac.compare_digest

    def compare(given, known):
        compared.append((len(given), len(known)))
        return real(given, known)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in (keys[0], keys[-1], "key-number-99999", "x"):
        compared.clear()
        ring.key_id(key.encode())
        assert compared == [(32, 32)] * len(keys)


@pytest.mark.parametrize("key", ["short", "", "with space in", "x" * 513, "naïve-key-1", "tab\there-1"])
def test_bad_keys_are_refused_without_being_shown(key):
    """The message names the place only."""
    with pytest.raises(ConfigError, match="API key 2 must be") as caught:
        KeyRing(["a-good-key", key])
    assert not key or key not in str(caught.value)


def test_reads_keys_from_a_file(tmp_path):
    """One per line, comments and empty lines aside."""
    file = tmp_path / "keys"
    file.write_text("# mine\n\n  first-key-1 \nsecond-key-2\n")
    assert read_key_file(file) == ["first-key-1", "second-key-2"]
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_key_file(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key_file(tmp_path / "missing")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_key_file(file)


def test_reply_to_a_wrong_key_says_how_to_ask(served):
    """As OpenAI's clients expect it; the key does not come back."""
    status, headers, reply = served.ask("GET", "/v1/models", key="wrong-key-123")
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert reply["error"]["code"] == "invalid_api_key"
    assert "wrong-key-123" not in str(reply)
    assert served.ask("GET", "/v1/models", key=None)[2]["error"]["code"] == "missing_api_key"
