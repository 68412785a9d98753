"""What each key may ask for: what it was not given it does not have, whatever is or will be routed."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from dataclasses import replace

import openai
import pytest

from inference_pio.interfaces import ConfigError
from inference_pio.serve import KeyRing, ServerState, ServeSettings, create_app
from inference_pio.serve._errors import ApiError
from inference_pio.serve._keys import KeyGrant, plain_key, read_key_file
from inference_pio.serve._limits import KeyLimits
from inference_pio.serve._routes import ROUTES
from inference_pio.serve._scopes import ALL, ANY, SCOPES, PlaceMap

FULL = "key-for-everything"
ONE_OF_EACH = {scope: f"key-for-{scope}-alone" for scope in sorted(SCOPES)}


def path_of(route):
    return re.sub(r"\{[^}]*\}", "name", route.path)


@pytest.fixture
def ask(ask_app):
    """Status, headers and body of a request with a key."""
    return lambda app, path, key, method="GET": ask_app(
        app, path, [(b"authorization", b"Bearer " + key.encode())], method
    )


def lines():
    return [FULL, *(f"{key} name={scope} scopes={scope}" for scope, key in ONE_OF_EACH.items())]


@pytest.fixture(scope="module")
def app():
    return create_app(ServerState(ServeSettings(keys=KeyRing(lines()))))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
@pytest.mark.parametrize("scope", ONE_OF_EACH)
def test_key_of_one_scope_opens_its_routes_alone(ask, app, route, scope):
    """403 everywhere else, before a body is read, and with how to ask for more."""
    status, headers, body = ask(app, path_of(route), ONE_OF_EACH[scope], route.method)
    if route.scope in {scope, ANY}:
        assert status not in {401, 403}
    else:
        assert status == 403
        assert headers[b"www-authenticate"] == b'Bearer error="insufficient_scope"'
        assert scope.encode() in body


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_key_without_scopes_opens_everything(ask, app, route):
    """As a bare line of a key file always has."""
    assert ask(app, path_of(route), FULL, route.method)[0] not in {401, 403}


def test_every_route_says_what_it_needs():
    """What says nothing is for keys without a list alone, which is right for no route of the table."""
    assert [route.path for route in ROUTES if route.scope not in SCOPES | {ANY}] == []


def test_route_that_says_nothing_is_closed(ask, app):
    """A new one, and whatever is not routed: a key with a list of scopes does not have it."""
    silent = replace(ROUTES[-1], path="/new", scope=ALL)
    made = create_app(ServerState(ServeSettings(keys=KeyRing(lines()))), (*ROUTES, silent))
    for application, path in ((made, "/new"), (app, "/v1/nothing"), (app, "/metrics/"), (app, "//metrics")):
        assert {ask(application, path, key)[0] for key in ONE_OF_EACH.values()} == {403}
        assert ask(application, path, FULL)[0] != 403


def test_only_files_and_facts_are_for_every_key():
    """What any key may ask for tells nothing of what others ask, and computes nothing."""
    assert {route.path for route in ROUTES if route.scope == ANY} == {
        "/", "/dashboard", "/static/{name}", "/health", "/livez", "/version", "/openapi.json"
    }  # fmt: skip


def test_places_are_those_that_are_routed():
    """By the same patterns as the router's; what is not there is nowhere."""
    places = PlaceMap(ROUTES)
    for route in ROUTES:
        assert places.find(path_of(route)) == (route.path, route.scope)
    assert places.find("/v1/models/a/b").name == "/v1/models/{model:path}"
    for path in ("", "/v1", "/v1/chat/completions/", "/V1/models", "/static/a/b"):
        assert places.find(path) == ("none", ALL)
    with pytest.raises(ValueError, match="need different scopes"):
        PlaceMap([ROUTES[0], replace(ROUTES[0], method="GET", scope=ANY)])
    with pytest.raises(ValueError, match="has no scope 'generat'"):
        PlaceMap([replace(ROUTES[0], scope="generat")])


def test_lines_say_what_a_key_may_do():
    """In any order; a hash in place of the key is the same key."""
    key = "a-key-of-mine"
    hashed = "sha256:" + hashlib.sha256(key.encode()).hexdigest()
    grant = KeyGrant(
        id="ci", is_named=True, scopes=frozenset({"models", "generate"}), max_concurrent=4, tokens_per_minute=60_000
    )
    rest = "name=ci scopes=generate,models max-concurrent=4 tokens-per-minute=60000"
    assert KeyRing([f"{key} {rest}"]).find(key.encode()) == grant
    backwards = " ".join(reversed(rest.split()))
    assert KeyRing([f"{hashed.upper().replace('SHA', 'sha')}\t{backwards}"]).find(key.encode()) == grant
    bare = KeyRing([key])
    assert bare.find(key.encode()) == KeyGrant(id=bare.key_id(key.encode()))
    assert KeyRing([hashed]).key_id(key.encode()) == bare.key_id(key.encode())
    assert KeyRing([hashed]).key_id(hashed.encode()) is None


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("a-good-key nothing", "API key 2 must be followed by NAME=VALUE"),
        ("a-good-key scope=generate", "API key 2 must be followed by NAME=VALUE"),
        ("a-good-key name=a name=b", "API key 2 must be followed by NAME=VALUE alone, each once"),
        ("a-good-key scopes=generat", "API key 2: there is no scope 'generat' .did you mean 'generate'"),
        ("a-good-key scopes=", "API key 2: there is no scope ''"),
        ("a-good-key scopes=models,zebra", "no scope 'zebra' .known are embed, generate"),
        ("a-good-key scopes=any", "there is no scope 'any'"),
        ("a-good-key name=../x", r"name '\.\./x' must be letters"),
        ("a-good-key name=anonymous", "name 'anonymous' must be"),
        ("a-good-key max-concurrent=0", "max-concurrent must be a number of at least 1, got '0'"),
        ("a-good-key tokens-per-minute=-5", "tokens-per-minute must be a number"),
        ("a-good-key tokens-per-minute=9" + "9" * 40, "tokens-per-minute must be a number"),
        ("sha256:abcdef", "API key 2 must be sha256: and 64 hexadecimal digits"),
        ("key-number-one scopes=models", "API key 2 is there twice"),
        ("another-key-1 name=one scopes=models", "API key 2 is there twice, or its name is, with different rights"),
    ],
)
def test_bad_lines_are_refused_without_showing_the_key(line, match):
    """The message says which and what, not the key."""
    first = "key-number-one name=one"
    with pytest.raises(ConfigError, match=match) as caught:
        KeyRing([first, line])
    assert "a-good-key" not in str(caught.value)


def test_two_keys_of_one_name_are_one_client():
    """So that it can change its key while both are valid: same id, same limits."""
    ring = KeyRing(["the-old-key name=ada scopes=generate", "the-new-key name=ada scopes=generate"])
    assert len(ring) == 2
    assert ring.key_id(b"the-old-key") == ring.key_id(b"the-new-key") == "ada"


def test_keys_to_send_are_plain(tmp_path):
    """``pio top`` sends the first of a file, without what stands behind it; a hash it cannot."""
    file = tmp_path / "keys"
    file.write_text("# of the dashboard\nthe-first-key name=top scopes=metrics\nthe-second-key\n")
    assert plain_key(read_key_file(file)[0]) == "the-first-key"
    with pytest.raises(ConfigError, match="as a hash, which opens nothing"):
        plain_key("sha256:" + "0" * 64)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
def test_warns_of_keys_that_others_may_read(tmp_path, caplog):
    """Unless there are hashes alone; the warning holds no key."""
    file = tmp_path / "keys"
    file.write_text("the-first-key\n")
    file.chmod(0o600)
    read_key_file(file)
    hashes = tmp_path / "hashes"
    hashes.write_text("sha256:" + "0" * 64 + " name=a\n")
    hashes.chmod(0o644)
    read_key_file(hashes)
    assert not caplog.records
    file.chmod(0o644)
    read_key_file(file)
    assert "may read the API keys" in caplog.text
    assert "the-first-key" not in caplog.text


def test_limits_of_one_key_are_its_own():
    """What its line says goes before the server's; the others have the server's."""
    now = [0.0]
    keys = KeyRing(["small-key-1 name=small max-concurrent=1 tokens-per-minute=60", "other-key-1 name=other"])
    limits = KeyLimits(2, None, keys=keys, clock=lambda: now[0])
    with limits.opened("small"), pytest.raises(ApiError, match="has 1 open requests") as caught, limits.opened("small"):
        pass
    assert caught.value.status == 429
    with limits.opened("small"):
        limits.spend("small", 90)
    with pytest.raises(ApiError, match="used its 60 tokens per minute") as caught, limits.opened("small"):
        pass
    assert int(caught.value.headers["retry-after"]) == 31
    now[0] = 31.0
    with limits.opened("small"), limits.opened("other"), limits.opened("other"):
        limits.spend("other", 10**9)
    with limits.opened("other"):
        pass


@pytest.fixture
def scoped(start_server):
    return start_server(keys=KeyRing([*lines(), "bounded-key-1 name=bounded tokens-per-minute=5 scopes=generate"]))


def test_openai_client_is_told_what_it_may_not(scoped):
    """Its class for it, with the code, once; what it may do it does, under its name in log and metrics."""
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    log = logging.getLogger("inference_pio.serve.access")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    asked = {"model": "smollm2-135m-instruct", "prompt": "Once", "max_tokens": 4}
    try:
        with openai.OpenAI(base_url=f"{scoped.url}/v1", api_key=ONE_OF_EACH["models"]) as client:
            assert client.models.list().data[0].id == asked["model"]
            with pytest.raises(openai.PermissionDeniedError, match="does not have the scope 'generate'") as caught:
                client.completions.create(**asked)
        with openai.OpenAI(base_url=f"{scoped.url}/v1", api_key=ONE_OF_EACH["generate"]) as client:
            used = client.completions.create(**asked).usage.total_tokens
    finally:
        log.removeHandler(handler)
    assert caught.value.code == "insufficient_scope"
    assert [line.rpartition("key=")[2] for line in logged] == ["models", "models", "generate"]
    text = scoped.ask("GET", "/metrics", key=ONE_OF_EACH["metrics"])[2].decode()
    assert 'pio:key_requests_total{key="models"} 2' in text
    assert f'pio:key_tokens_total{{key="generate"}} {used}' in text
    assert not [key for key in (FULL, *ONE_OF_EACH.values()) if key in text + "".join(logged)]


def test_bounded_key_is_refused_for_a_while(scoped):
    """Its own rate, where the server has none."""
    body = {"prompt": "Once upon a time", "max_tokens": 8}
    assert scoped.post("/v1/completions", body, key="bounded-key-1")[0] == 200
    status, headers, reply = scoped.post("/v1/completions", body, key="bounded-key-1")
    assert (status, reply["error"]["code"]) == (429, "tokens_per_minute")
    assert int(headers["retry-after"]) > 1
    assert scoped.post("/v1/completions", body, key=FULL)[0] == 200
