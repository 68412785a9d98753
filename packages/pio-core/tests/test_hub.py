"""Fetching models: what is asked of a hub, what is taken, and what a broken or hostile one can do."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from inference_pio.core import hub
from inference_pio.interfaces import (
    ConfigError,
    DoesNotFitError,
    HubError,
    MalformedFileError,
    ModelNotFoundError,
    PathEscapeError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "a" * 40
OTHER_COMMIT = "b" * 40
WEIGHTS = bytes(range(256)) * 2048  # 512 KiB
SAFETENSORS_REPO = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE.md": b"free",
    "model.safetensors": WEIGHTS,
    "consolidated.safetensors": b"the same weights once more",
    "pytorch_model.bin": b"pickled code",
    "modeling_thing.py": b"import os",
    "README.md": b"# hello",
    ".gitattributes": b"*",
    "onnx/model.onnx": b"onnx",
    "sub/model.safetensors": b"elsewhere",
}


class FakeHub:
    """The routes of a hub that a pull uses, with faults to order."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {"org/tiny": dict(SAFETENSORS_REPO)}
        self.commit = COMMIT
        self.refuse: tuple[int, str] | None = None  # status and X-Error-Code of every answer
        self.listing: object = None  # instead of the true one
        self.drop: dict[str, int] = {}  # file -> bytes sent before the connection is cut
        self.corrupt: set[str] = set()
        self.delay_s = 0.0
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: object) -> None: ...

            def do_HEAD(self) -> None:
                fake.answer(self, "HEAD")

            def do_GET(self) -> None:
                fake.answer(self, "GET")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def fetched(self) -> list[str]:
        return [path.rsplit("/", 1)[-1] for method, path in self.requests if method == "GET" and "/resolve/" in path]

    def answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.requests.append((method, path))
        self.tokens.add(handler.headers.get("authorization"))
        parts = path.strip("/").split("/")
        if self.refuse is not None:
            self.send(handler, self.refuse[0], b"no", {"X-Error-Code": self.refuse[1]})
        elif parts[:2] == ["api", "models"]:
            repo, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
            self.answer_listing(handler, repo, revision)
        else:
            self.answer_file(handler, method, "/".join(parts[:2]), "/".join(parts[4:]))

    def answer_listing(self, handler: BaseHTTPRequestHandler, repo: str, revision: str) -> None:
        if repo not in self.repos:
            self.send(handler, 404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in {"main", self.commit}:
            self.send(handler, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [self.entry(name, data) for name, data in self.repos[repo].items()]
            document = {"id": repo, "sha": self.commit, "siblings": siblings}
            body = json.dumps(document if self.listing is None else self.listing).encode()
            self.send(handler, 200, body, {"Content-Type": "application/json"})

    def entry(self, name: str, data: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\x00" % len(data) + data, usedforsecurity=False).hexdigest()
        entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
        if name.endswith((".safetensors", ".gguf", ".bin")):
            entry["blobId"] = "f" * 40  # of the pointer file, not of the content
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def answer_file(self, handler: BaseHTTPRequestHandler, method: str, repo: str, name: str) -> None:
        data = self.repos[repo].get(name)
        if data is None:
            self.send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": self.commit,
            "X-Linked-Size": str(len(data)),
        }
        if method == "GET":
            time.sleep(self.delay_s)
        if name in self.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if method == "GET" and name in self.drop:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: self.drop[name]])
            handler.wfile.flush()
            self.drop[name] = 0
            handler.close_connection = True
            return
        self.send(handler, 200, b"" if method == "HEAD" else data, {**headers, "Content-Length": str(len(data))})

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # no request beyond those of a pull
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fake = FakeHub()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def visible(cache: Path) -> list[str]:
    """What a user, or a program that lists the folder, sees of the cache."""
    models = cache / "models"
    return sorted(path.name for path in models.iterdir() if not path.name.startswith(".")) if models.exists() else []


def test_pull_brings_one_set_of_weights_and_what_goes_with_it(fake_hub, cache):
    """Safetensors, config, tokenizer, template and licence; never pickles, code, folders or a second set of weights."""
    local = hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    wanted = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "LICENSE.md",
        "model.safetensors",
    }
    assert {path.name for path in local.path.iterdir()} == wanted | {hub.RECORD_NAME}
    assert set(fake_hub.fetched()) == wanted
    assert (local.path / "model.safetensors").read_bytes() == WEIGHTS
    assert (local.name, local.revision, local.source) == ("org/tiny", COMMIT, fake_hub.url)
    assert local.bytes == sum(len(SAFETENSORS_REPO[name]) for name in wanted)
    assert hub.list_models(cache) == [local]
    assert hub.find("org/tiny", cache) == local
    assert visible(cache) == ["org--tiny"]
    assert not any((cache / "models" / ".partial").iterdir())


def test_pull_of_the_same_commit_fetches_nothing(fake_hub, cache):
    """A second pull asks for the commit; with the commit in hand, not even that."""
    first = hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    fake_hub.requests.clear()
    assert hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url) == first
    assert [method for method, _ in fake_hub.requests] == ["GET"]
    fake_hub.requests.clear()
    assert hub.pull("org/tiny", revision=COMMIT, cache_dir=cache, endpoint=fake_hub.url) == first
    assert hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url, offline=True) == first
    assert fake_hub.requests == []


def test_pull_replaces_an_older_commit(fake_hub, cache):
    """A model that moved on is replaced as a whole."""
    hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    fake_hub.commit = OTHER_COMMIT
    fake_hub.repos["org/tiny"] = {"config.json": b'{"new": 1}', "model.safetensors": b"new weights"}
    local = hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    assert local.revision == OTHER_COMMIT
    assert {path.name for path in local.path.iterdir()} == {"config.json", "model.safetensors", hub.RECORD_NAME}
    assert visible(cache) == ["org--tiny"]


def test_pull_reports_progress_up_to_the_total(fake_hub, cache):
    """Bytes never run backwards and end at the sum of the files."""
    seen: list[tuple[int, int]] = []
    local = hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url, progress=lambda *step: seen.append(step))
    assert seen[-1] == (local.bytes, local.bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {local.bytes}


def test_sharded_checkpoint_brings_the_shards_of_its_index(fake_hub, cache):
    """The index decides, so a second set of weights beside it stays where it is."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    fake_hub.repos["org/big"] = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": b"one",
        "model-00002-of-00002.safetensors": b"two",
        "consolidated.safetensors": b"both",
    }
    local = hub.pull("org/big", cache_dir=cache, endpoint=fake_hub.url)
    names = {path.name for path in local.path.iterdir()}
    assert names == set(fake_hub.repos["org/big"]) - {"consolidated.safetensors"} | {hub.RECORD_NAME}
    assert fake_hub.fetched().count("model.safetensors.index.json") == 1


@pytest.mark.parametrize(
    ("weight_map", "error", "message"),
    [
        ({"a": "../../evil.safetensors"}, PathEscapeError, r"weight_map: unsafe file name '\.\./\.\./evil"),
        ({"a": "/etc/evil.safetensors"}, PathEscapeError, "unsafe file name '/etc"),
        ({"a": "sub/x.safetensors"}, PathEscapeError, "unsafe file name 'sub/x"),
        ({"a": "pytorch_model.bin"}, MalformedFileError, "'pytorch_model.bin' is no safetensors file"),
        ({"a": "model-9.safetensors"}, MalformedFileError, "names 'model-9.safetensors', which is not there"),
        ({}, MalformedFileError, "must map tensors to files"),
        (["a"], MalformedFileError, "must map tensors to files"),
    ],
)
def test_hostile_index_is_refused(fake_hub, cache, weight_map, error, message):
    """An index can name neither files elsewhere nor files of another kind."""
    fake_hub.repos["org/big"] = {
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        "pytorch_model.bin": b"pickled",
        "sub/x.safetensors": b"x",
    }
    with pytest.raises(error, match=message):
        hub.pull("org/big", cache_dir=cache, endpoint=fake_hub.url)
    assert visible(cache) == []
    assert not (cache.parent / "evil.safetensors").exists()


GGUF_REPO = {
    "tiny-Q4_K_M.gguf": b"four",
    "tiny-Q8_0.gguf": b"eight",
    "tiny.f16.gguf": b"sixteen",
    "mmproj-model-f16.gguf": b"eyes",
    "README.md": b"",
}


@pytest.mark.parametrize(
    ("model_id", "files", "taken"),
    [
        ("org/quants", GGUF_REPO, "tiny-Q4_K_M.gguf"),
        ("org/quants:Q8_0", GGUF_REPO, "tiny-Q8_0.gguf"),
        ("org/quants:q8_0", GGUF_REPO, "tiny-Q8_0.gguf"),
        ("org/quants:F16", GGUF_REPO, "tiny.f16.gguf"),
        ("org/quants:tiny-Q8_0.gguf", GGUF_REPO, "tiny-Q8_0.gguf"),
        ("org/quants", {"only-Q2_K.gguf": b"two"}, "only-Q2_K.gguf"),
        ("org/quants:Q4_0", {**SAFETENSORS_REPO, "x-Q4_0.gguf": b"q"}, "x-Q4_0.gguf"),
    ],
)
def test_one_gguf_file_of_many_is_taken(fake_hub, cache, model_id, files, taken):
    """The tag chooses; without one the only file, or the usual encoding."""
    fake_hub.repos["org/quants"] = files
    local = hub.pull(model_id, cache_dir=cache, endpoint=fake_hub.url)
    weights = [path.name for path in local.path.iterdir() if path.suffix in {".gguf", ".safetensors"}]
    assert weights == [taken]
    assert local.name == model_id
    assert hub.find(model_id, cache) == local


@pytest.mark.parametrize(
    ("model_id", "files", "error", "message"),
    [
        ("org/x", {"a-Q8_0.gguf": b"", "a-Q6_K.gguf": b""}, UnsupportedError, r"2 GGUF files.*a-Q6_K.*org/x:Q8_0"),
        ("org/x:Q2_K", GGUF_REPO, ModelNotFoundError, r"no file for the tag 'Q2_K' \(there is .*tiny-Q8_0.gguf"),
        ("org/x", {"a-00001-of-00003.gguf": b""}, UnsupportedError, "one part of a split GGUF"),
        (
            "org/x",
            {"pytorch_model.bin": b""},
            UnsupportedError,
            "has no .safetensors or .gguf weights; it has pytorch_",
        ),
        ("org/x", {"README.md": b""}, UnsupportedError, "has no .safetensors or .gguf weights$"),
        (
            "org/x",
            {"a.safetensors": b"", "b.safetensors": b""},
            UnsupportedError,
            "2 safetensors files and none that is",
        ),
    ],
)
def test_repository_without_one_clear_model_says_what_it_has(fake_hub, cache, model_id, files, error, message):
    """Nothing is fetched on a guess."""
    fake_hub.repos["org/x"] = files
    with pytest.raises(error, match=message):
        hub.pull(model_id, cache_dir=cache, endpoint=fake_hub.url)
    assert fake_hub.fetched() == []
    assert visible(cache) == []


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "/etc/evil.json",
        "a/../../evil.json",
        "..\\evil.json",
        "C:\\evil.json",
        "C:evil",
        "a//b",
        "a\nb",
        "",
    ],
)
def test_hostile_listing_is_refused_whole(fake_hub, cache, name):
    """One name that leads out of the repository is reason enough to take nothing from it."""
    fake_hub.repos["org/tiny"][name] = b"evil"
    with pytest.raises(PathEscapeError, match="listing: unsafe file name"):
        hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    assert fake_hub.fetched() == []
    assert visible(cache) == []


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ([], "sent no listing of org/tiny"),
        (
            {"id": "org/tiny", "sha": "../../x", "siblings": []},
            r"which commit of org/tiny it serves, got '\.\./\.\./x'",
        ),
        ({"id": "org/tiny", "siblings": []}, "which commit of org/tiny"),
        ({"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": "a", "size": "many"}]}, "sent no listing"),
        ({"id": "org/tiny", "sha": COMMIT, "siblings": [7]}, "sent no listing"),
    ],
)
def test_malformed_listing_is_one_line(fake_hub, cache, listing, message):
    """A server that is no hub, or a broken one, gives one line that names it."""
    fake_hub.listing = listing
    with pytest.raises(HubError, match=message) as caught:
        hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    assert "\n" not in str(caught.value)


def test_interrupted_download_leaves_nothing_visible_and_is_completed_later(fake_hub, cache, monkeypatch):
    """A connection that is cut and stays cut: an error, no visible file; the next pull fetches only what is missing."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _seconds: None)
    fake_hub.drop["model.safetensors"] = 1000
    with pytest.raises(HubError, match=r"cannot fetch org/tiny from http.*\(check the network"):
        hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    assert visible(cache) == []
    assert hub.list_models(cache) == []
    assert hub.find("org/tiny", cache) is None
    fake_hub.drop.clear()
    fake_hub.requests.clear()
    local = hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    assert (local.path / "model.safetensors").read_bytes() == WEIGHTS
    assert fake_hub.fetched() == ["model.safetensors"]


def test_failed_update_leaves_the_old_model_as_it_was(fake_hub, cache):
    """The folder in use is replaced only by a complete one."""
    before = hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    fake_hub.commit = OTHER_COMMIT
    fake_hub.corrupt.add("model.safetensors")
    with pytest.raises(
        HubError, match=r"sent a broken org/tiny/model.safetensors: checksum .* instead of .*\(try again"
    ):
        hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    assert hub.list_models(cache) == [before]
    assert (before.path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_content_that_differs_from_the_listing_is_refused(fake_hub, cache, name):
    """Git's checksum guards small files, SHA-256 large ones; a broken file is not kept for the next try."""
    fake_hub.corrupt.add(name)
    with pytest.raises(HubError, match=f"sent a broken org/tiny/{name}"):
        hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    assert visible(cache) == []
    fake_hub.corrupt.clear()
    assert hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url).revision == COMMIT


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_killed_pull_leaves_nothing_visible(fake_hub, cache):
    """A process that dies in the middle of a download leaves no half model, and no lock that blocks the next one."""
    fake_hub.delay_s = 0.5
    script = textwrap.dedent(
        f"""
        import sys
        from inference_pio.core import hub
        print("started", flush=True)
        hub.pull("org/tiny", cache_dir={str(cache)!r}, endpoint={fake_hub.url!r})
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while len(fake_hub.fetched()) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert visible(cache) == []
    fake_hub.delay_s = 0.0
    assert hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url).revision == COMMIT
    assert visible(cache) == ["org--tiny"]


def test_two_pulls_at_once_fetch_once(fake_hub, cache):
    """The second waits for the first and finds its work done."""
    fake_hub.delay_s = 0.05
    results: list[hub.LocalModel] = []

    def fetch() -> None:
        results.append(hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3
    assert len(set(results)) == 1
    assert fake_hub.fetched().count("model.safetensors") == 1


@pytest.mark.parametrize(
    ("refuse", "error", "message"),
    [
        ((401, "RepoNotFound"), ModelNotFoundError, "has no model 'org/tiny'.*HF_TOKEN"),
        ((404, "RepoNotFound"), ModelNotFoundError, "has no model 'org/tiny'"),
        ((403, "GatedRepo"), HubError, "is gated and this account may not fetch it.*accept its terms.*HF_TOKEN"),
        ((403, ""), HubError, "HTTP status 403.*check HF_TOKEN"),
        ((429, ""), HubError, "HTTP status 429.*try again later"),
        ((500, ""), HubError, "HTTP status 500.*try again later"),
    ],
)
def test_refusals_say_why_on_one_line(fake_hub, cache, refuse, error, message):
    """Each answer of a hub that refuses has its own line and way out."""
    fake_hub.refuse = refuse
    with pytest.raises(error, match=message) as caught:
        hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (3 if error is ModelNotFoundError else 1)
    assert visible(cache) == []


def test_unknown_names_and_revisions_are_not_found(fake_hub, cache):
    """Exit code 3, with the name and the way out."""
    with pytest.raises(ModelNotFoundError, match="has no model 'org/none'"):
        hub.pull("org/none", cache_dir=cache, endpoint=fake_hub.url)
    with pytest.raises(ModelNotFoundError, match="org/tiny has no revision 'v9'"):
        hub.pull("org/tiny", revision="v9", cache_dir=cache, endpoint=fake_hub.url)
    with pytest.raises(ModelNotFoundError, match=r"'org/tiny' is not on this machine \(fetch it: pio pull org/tiny"):
        hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url, offline=True)


@pytest.mark.parametrize(
    "model_id", ["tiny", "org/../tiny", "org//tiny", "a/b/c", "/tiny", "org/ti ny", "org/a--b", ""]
)
def test_what_is_no_hub_id_never_reaches_the_network(fake_hub, cache, model_id):
    """Ids that could become paths or other routes are refused at once."""
    with pytest.raises(ModelNotFoundError, match="is not a hub id"):
        hub.pull(model_id, cache_dir=cache, endpoint=fake_hub.url)
    assert fake_hub.requests == []


def test_unreachable_hub_is_one_line(cache, fake_hub):
    """Nobody listens: the address, the reason, the way out."""
    fake_hub.server.shutdown()
    fake_hub.server.server_close()
    with pytest.raises(HubError, match=rf"cannot fetch org/tiny from {fake_hub.url}: .*refused") as caught:
        hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    assert "\n" not in str(caught.value)


def test_offline_mode_of_the_environment_is_respected(fake_hub, cache, monkeypatch):
    """``HF_HUB_OFFLINE`` is the user's word, and the message says so."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from huggingface_hub.utils import close_session

    close_session()  # the client reads the mode when it is made
    try:
        with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids the network"):
            hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    finally:
        monkeypatch.undo()
        close_session()
    assert fake_hub.requests == []


def test_token_goes_only_to_the_users_own_hub(fake_hub, cache, monkeypatch):
    """An endpoint from a settings file, which may be a stranger's, never sees the token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    assert fake_hub.tokens == {None}
    # The client reads the user's own hub from the environment when it is imported.
    code = f"from inference_pio.core import hub; hub.pull('org/tiny', cache_dir={str(cache / 'second')!r})"
    env = {**os.environ, "HF_ENDPOINT": fake_hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert fake_hub.tokens == {None, "Bearer hf_secret"}


def test_full_disk_is_found_before_the_download(fake_hub, cache, monkeypatch):
    """The listing says how much is needed, so nothing is fetched that cannot be kept."""
    monkeypatch.setattr("inference_pio.core.hub.shutil.disk_usage", lambda _path: SimpleNamespace(free=1000))
    with pytest.raises(DoesNotFitError, match=r"org/tiny needs 0.00 GiB on disk, and 0.00 GiB are free.*PIO_CACHE_DIR"):
        hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    assert fake_hub.fetched() == []


def test_cache_that_cannot_be_written_names_the_folder(fake_hub, tmp_path):
    """A file where the cache should be: the path and the way out, not a traceback."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(ConfigError, match=r"cannot write .*file.*PIO_CACHE_DIR"):
        hub.pull("org/tiny", cache_dir=blocked, endpoint=fake_hub.url)


def test_remove_deletes_the_model_and_nothing_else(fake_hub, cache):
    """Gone from the listing and from the disk; its neighbour stays."""
    fake_hub.repos["org/other"] = {"model.safetensors": b"x"}
    local = hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    other = hub.pull("org/other", cache_dir=cache, endpoint=fake_hub.url)
    assert hub.remove("org/tiny", cache) == local
    assert hub.list_models(cache) == [other]
    assert not local.path.exists()
    assert not (cache / "models" / ".trash").exists()


def test_remove_of_an_unknown_name_suggests_the_nearest(fake_hub, cache):
    """A typing error shows what was meant; an empty cache says that it is empty."""
    with pytest.raises(ModelNotFoundError, match=r"no fetched model 'org/tniy' \(nothing has been fetched yet\)"):
        hub.remove("org/tniy", cache)
    hub.pull("org/tiny", cache_dir=cache, endpoint=fake_hub.url)
    with pytest.raises(ModelNotFoundError, match="did you mean 'org/tiny'"):
        hub.remove("org/tniy", cache)
    with pytest.raises(ModelNotFoundError, match=r"no fetched model '\.\./x' \(fetched models: org/tiny\)"):
        hub.remove("../x", cache)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "not JSON"),
        ("[]", "schema: is no record"),
        ('{"schema": 2}', "schema: is no record"),
        ('{"schema": 1, "name": 5}', "name: must be a string, got 5"),
        ('{"schema": 1, "name": "org/else", "revision": "r", "source": "s"}', "'org/else' does not belong"),
    ],
)
def test_damaged_record_is_reported(cache, record, message):
    """A record that this module did not write is not believed."""
    folder = cache / "models" / "org--tiny"
    folder.mkdir(parents=True)
    (folder / hub.RECORD_NAME).write_text(record)
    with pytest.raises(MalformedFileError, match=message):
        hub.list_models(cache)


def test_folders_without_a_record_are_no_models(cache):
    """Whatever else lies in the cache, or hides in it, is not listed."""
    for name in ("org--tiny", ".partial"):
        (cache / "models" / name).mkdir(parents=True)
    assert hub.list_models(cache) == []
    assert hub.find("org/tiny", cache) is None


def test_default_cache_is_that_of_the_settings(fake_hub, tmp_path, monkeypatch):
    """Without a folder, the user's cache is meant."""
    monkeypatch.setenv("PIO_CACHE_DIR", str(tmp_path / "mine"))
    local = hub.pull("org/tiny", endpoint=fake_hub.url)
    assert local.path == tmp_path / "mine" / "models" / "org--tiny"
    assert hub.list_models() == [local]


def test_importing_the_hub_imports_no_client():
    """Listing what is here must not wait for a network library."""
    code = "import sys; from inference_pio.core import hub; print(*({'huggingface_hub', 'torch'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
