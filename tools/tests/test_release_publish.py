"""What publish would upload, and everything that it refuses before: toy releases, and an index that serves pages."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from release import main
from release_build import release_files
from release_index import Index
from release_manifest import Built, Manifest, describe, read_manifest, write_manifest
from release_publish import make_uploads, tag
from release_refusal import RefusedError
from workspace import read_members

BASE, TOP = "packages/pio-base", "packages/pio-top"
WHEEL, SOURCE = "pio_base-0.1.1-py3-none-any.whl", "pio_base-0.1.1.tar.gz"


class Pages(BaseHTTPRequestHandler):
    """Answers with the page that a test put at the path, or 404."""

    pages: ClassVar = {}

    def do_GET(self):
        if self.path not in self.pages:
            self.send_error(404)
            return
        kind, text = self.pages[self.path]
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def index():
    """An index that has the first releases of everything; ``hold`` gives it a file."""

    class Handler(Pages):
        pages: ClassVar = {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    served = Index(f"http://127.0.0.1:{server.server_address[1]}/simple/")
    files = {}

    def hold(name, file, content, *, hashed=True):
        known = files.setdefault(name, {})
        known[file] = f"#sha256={hashlib.sha256(content).hexdigest()}" if hashed else ""
        links = "".join(f'<a href="/files/{each}{fragment}">{each}</a>' for each, fragment in known.items())
        Handler.pages[f"/simple/{name}/"] = ("text/html", f"<!DOCTYPE html><body>{links}</body>".encode())
        Handler.pages[f"/files/{file}"] = ("application/octet-stream", content)

    for name in ("pio-base", "pio-side", "pio-top"):
        stem = name.replace("-", "_")
        hold(name, f"{stem}-0.1.0-py3-none-any.whl", b"old wheel")
        hold(name, f"{stem}-0.1.0.tar.gz", b"old source")
    yield served, hold, Handler.pages
    server.shutdown()
    server.server_close()
    thread.join()


def built(toy, *names):
    """Make files for ``names`` as if they had been checked, and their manifest; the folder."""
    folder = toy.root.parent / f"{toy.root.name}-dist"
    members, listed = read_members(toy.root), []
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        files = [folder / name / file for file in release_files(members[name])]
        for file in files:
            file.write_bytes(f"content of {file.name}".encode())
        about = {"name": name, "version": members[name].version, "tested": ("highest", "lowest-direct")}
        listed.append(Built(**about, files=tuple(describe(file) for file in files)))
    write_manifest(folder, Manifest(commit=toy.git("rev-parse", "HEAD").strip(), distributions=tuple(listed)))
    return folder


@pytest.fixture
def ready(released):
    """pio-base 0.1.1, prepared and checked, and neither tagged nor published."""
    released.release("pio-base", "0.1.1")
    released.git("tag", "--delete", "pio-base-v0.1.1")
    return released, built(released, "pio-base")


def missing(uploads):
    return {each.built.name: [file.name for file in each.missing] for each in uploads}


def test_what_the_index_lacks_is_uploaded(ready, index):
    """The wheel first, so that nobody builds from source what comes as a wheel a moment later."""
    toy, folder = ready
    assert missing(make_uploads(toy.root, folder, index[0])) == {"pio-base": [WHEEL, SOURCE]}


def test_what_is_there_with_the_same_bytes_is_done(ready, index):
    """A run that was killed is completed, and one that was not has nothing to do."""
    toy, folder = ready
    served, hold, _ = index
    hold("pio-base", WHEEL, f"content of {WHEEL}".encode())
    assert missing(make_uploads(toy.root, folder, served)) == {"pio-base": [SOURCE]}
    hold("pio-base", SOURCE, f"content of {SOURCE}".encode())
    assert missing(make_uploads(toy.root, folder, served)) == {"pio-base": []}


@pytest.mark.parametrize("hashed", [True, False])
def test_other_bytes_on_the_index_are_refused(ready, index, hashed):
    """Whether the index says the hash or has to be asked for the file."""
    toy, folder = ready
    served, hold, _ = index
    hold("pio-base", WHEEL, b"another build", hashed=hashed)
    with pytest.raises(RefusedError, match=rf"pio-base 0\.1\.1: {WHEEL} is on the index with other bytes"):
        make_uploads(toy.root, folder, served)


def test_an_unknown_file_of_the_version_is_refused(ready, index):
    """Somebody else uploaded a part of this version."""
    toy, folder = ready
    served, hold, _ = index
    hold("pio-base", "pio_base-0.1.1-py3-none-win_amd64.whl", b"?")
    with pytest.raises(RefusedError, match=r"the index has pio_base-0\.1\.1-py3-none-win_amd64\.whl of it"):
        make_uploads(toy.root, folder, served)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / WHEEL).write_bytes(b"tampered"), f"{WHEEL}: has sha256"),
        (lambda folder: (folder / SOURCE).unlink(), f"{SOURCE}: was checked, and is not there"),
        (lambda folder: (folder / "evil-1-py3-none-any.whl").write_bytes(b""), "evil-1.*was never checked"),
    ],
)
def test_files_that_are_not_the_manifests_are_refused(ready, index, spoil, reason):
    """Changed, lost, or slipped in since they were checked."""
    toy, folder = ready
    spoil(folder / "pio-base")
    with pytest.raises(RefusedError, match=reason):
        make_uploads(toy.root, folder, index[0])


def test_another_manifest_is_refused(ready, index):
    """Whoever can change a wheel can change the manifest beside it, but not the hash that came another way."""
    toy, folder = ready
    right = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert make_uploads(toy.root, folder, index[0], sha256=right)
    with pytest.raises(RefusedError, match="it is not what was checked"):
        make_uploads(toy.root, folder, index[0], sha256="0" * 64)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"commit": "x", "distributions": [{}]}'])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    """With the way out, and not with a traceback."""
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(RefusedError, match="not a manifest"):
        read_manifest(tmp_path)


def test_a_tag_elsewhere_is_refused(ready, index):
    """It names a commit where the version is another one."""
    toy, folder = ready
    toy.git("tag", "pio-base-v0.1.1", "HEAD~1")
    with pytest.raises(RefusedError, match=r"tag pio-base-v0\.1\.1 names \w+, where pio-base has another version"):
        make_uploads(toy.root, folder, index[0])


def test_a_tag_on_other_content_is_refused(ready, index):
    """The version is the same, and what it holds is not."""
    toy, _ = ready
    toy.git("tag", "pio-base-v0.1.1")
    toy.write(f"{BASE}/src/inference_pio/base/__init__.py", "x = 1\n")
    toy.commit("change")
    folder = built(toy, "pio-base")
    with pytest.raises(RefusedError, match=r"tag pio-base-v0\.1\.1 names .*, where pio-base differs"):
        make_uploads(toy.root, folder, index[0])


def test_a_tag_of_the_same_content_agrees(ready, index):
    """A later commit that touches other distributions builds the same release."""
    toy, _ = ready
    toy.git("tag", "pio-base-v0.1.1")
    toy.write(f"{TOP}/README.md", "more\n")
    toy.commit("words")
    assert missing(make_uploads(toy.root, built(toy, "pio-base"), index[0])) == {"pio-base": [WHEEL, SOURCE]}


def test_a_tree_that_went_on_is_refused(ready, index):
    """What was built is not what the tree says now."""
    toy, folder = ready
    toy.write(f"{BASE}/src/inference_pio/base/__init__.py", "x = 1\n")
    toy.commit("change")
    with pytest.raises(RefusedError, match="its folder has changed since"):
        make_uploads(toy.root, folder, index[0])
    toy.release("pio-base", "0.1.2")
    with pytest.raises(RefusedError, match=r"pio-base 0\.1\.1: the tree has version 0\.1\.2"):
        make_uploads(toy.root, folder, index[0])


def test_changes_beside_a_prepared_version_are_refused(ready, index):
    """They would go out without a word in the changelog."""
    toy, _ = ready
    toy.write(f"{BASE}/changelog.d/it.fixed.md", "Something.\n")
    toy.commit("change")
    with pytest.raises(RefusedError, match="holds changes that its changelog does not"):
        make_uploads(toy.root, built(toy, "pio-base"), index[0])


def test_what_was_never_prepared_is_refused(released, index):
    """Its changelog says nothing of it."""
    released.add("pio-new")
    released.commit("new")
    with pytest.raises(RefusedError, match=r"pio-new 0\.1\.0: its changelog has no entry"):
        make_uploads(released.root, built(released, "pio-new"), index[0])


def test_a_cycle_is_refused(ready, index):
    """Before anything else is looked at."""
    toy, folder = ready
    toy.replace(f"{BASE}/pyproject.toml", "dependencies = []", "dependencies = ['pio-top>=0.1,<0.2']")
    with pytest.raises(RefusedError, match="dependency cycle"):
        make_uploads(toy.root, folder, index[0])


def test_a_bound_that_nothing_satisfies_is_refused(released, index):
    """Neither the index nor what is published along has it; what is published along may have it."""
    released.release("pio-base", "0.2.0")
    released.replace(f"{TOP}/pyproject.toml", "pio-base>=0.1,<0.2", "pio-base>=0.2,<0.3")
    released.release("pio-top", "0.1.1")
    folder = built(released, "pio-base", "pio-top")
    assert list(missing(make_uploads(released.root, folder, index[0]))) == ["pio-base", "pio-top"]
    with pytest.raises(
        RefusedError, match=r"pio-top \(dependencies\): nothing satisfies pio-base>=0\.2,<0\.3: there are 0\.1\.0"
    ):
        make_uploads(released.root, folder, index[0], only=["pio-top"])


def test_a_prepared_release_that_is_not_built_is_refused(ready, index):
    """It would be a gap; one that nothing of the tree is known of is no gap."""
    toy, _ = ready
    toy.release("pio-top", "0.1.1")
    with pytest.raises(RefusedError, match=r"pio-base 0\.1\.1 is prepared, and the index does not have it"):
        make_uploads(toy.root, built(toy, "pio-top"), index[0])
    index[1]("pio-base", WHEEL, b"")
    with pytest.raises(RefusedError, match=rf"pio-base 0\.1\.1 is prepared, and the index lacks {SOURCE}"):
        make_uploads(toy.root, built(toy, "pio-top"), index[0])


def test_all_reasons_are_said_at_once(ready, index):
    """Nobody has to run it once per reason."""
    toy, folder = ready
    (folder / "pio-base" / WHEEL).write_bytes(b"x")
    (folder / "pio-base" / SOURCE).write_bytes(b"x")
    with pytest.raises(RefusedError) as caught:
        make_uploads(toy.root, folder, index[0], only=["pio-top"])
    assert [reason.partition(" ")[0] for reason in caught.value.reasons] == [
        "pio-top",
        f"pio-base/{WHEEL}:",
        f"pio-base/{SOURCE}:",
    ]


def test_a_dry_run_says_what_it_would_upload(ready, index, capsys):
    """In dependency order, for people and as JSON."""
    toy, folder = ready
    words = ["publish", "--index", index[0].url, "--root", str(toy.root), "--dist", str(folder), "--dry-run"]
    main(words)
    assert capsys.readouterr().out == f"pio-base 0.1.1: {WHEEL}, {SOURCE} would be uploaded\n"
    main([*words, "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "dry_run": True,
        "distributions": [
            {"name": "pio-base", "version": "0.1.1", "tag": "pio-base-v0.1.1", "uploaded": [WHEEL, SOURCE]}
        ],
    }


def test_untested_releases_need_a_word(ready, index, capsys):
    """What was checked without its tests is published on request alone."""
    toy, folder = ready
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["distributions"][0]["tested"] = ["highest"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    words = ["publish", "--index", index[0].url, "--root", str(toy.root), "--dist", str(folder), "--dry-run"]
    with pytest.raises(SystemExit, match=r"pio-base 0\.1\.1 was checked without its tests"):
        main(words)
    main([*words, "--allow-untested"])
    assert "would be uploaded" in capsys.readouterr().out


def test_complete_releases_are_tagged_once(ready, index):
    """At the commit they were built from; one that is not complete is refused."""
    toy, folder = ready
    served, hold, _ = index
    with pytest.raises(RefusedError, match=r"pio-base 0\.1\.1 is not complete"):
        tag(toy.root, folder, served, None, dry_run=False)
    for file in (WHEEL, SOURCE):
        hold("pio-base", file, f"content of {file}".encode())
    commit = toy.git("rev-parse", "HEAD")
    toy.write(f"{TOP}/README.md", "more\n")
    toy.commit("words")
    assert tag(toy.root, folder, served, None, dry_run=True) == ["pio-base-v0.1.1"]
    assert "pio-base-v0.1.1" not in toy.git("tag")
    assert tag(toy.root, folder, served, None, dry_run=False) == ["pio-base-v0.1.1"]
    assert toy.git("rev-parse", "pio-base-v0.1.1^{commit}") == commit
    assert tag(toy.root, folder, served, None, dry_run=False) == []


def test_tags_are_pushed(ready, index, tmp_path_factory):
    """Where the others look for them."""
    toy, folder = ready
    served, hold, _ = index
    for file in (WHEEL, SOURCE):
        hold("pio-base", file, f"content of {file}".encode())
    remote = tmp_path_factory.mktemp("remote")
    toy.git("init", "--bare", str(remote))
    toy.git("remote", "add", "upstream", str(remote))
    tag(toy.root, folder, served, "upstream", dry_run=False)
    assert "refs/tags/pio-base-v0.1.1" in toy.git("ls-remote", "upstream")


def test_both_forms_of_the_simple_api_are_read(index):
    """HTML with hashes in the links, JSON with hashes of their own; addresses may be relative."""
    served, _, pages = index
    assert set(served.files("pio_Base")) == {"pio_base-0.1.0-py3-none-any.whl", "pio_base-0.1.0.tar.gz"}
    files = [{"filename": WHEEL, "url": f"../../files/{WHEEL}", "hashes": {"sha256": "ab"}}]
    pages["/simple/pio-base/"] = ("application/vnd.pypi.simple.v1+json", json.dumps({"files": files}).encode())
    [file] = served.files("pio-base").values()
    assert (file.name, file.sha256) == (WHEEL, "ab")
    assert file.url == f"{served.url.removesuffix('simple/')}files/{WHEEL}"
    assert [str(version) for version in served.versions("pio-base")] == ["0.1.1"]


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("application/vnd.pypi.simple.v1+json", b"{}", "not an index's answer: KeyError"),
        ("application/vnd.pypi.simple.v1+json", b"<html>", "not an index's answer: JSONDecodeError"),
        ("application/json", b"{}", "answers with application/json, not with a page of the simple API"),
    ],
)
def test_an_answer_that_is_no_indexs_is_refused(index, kind, text, reason):
    """It must not pass for an index that has nothing."""
    served, _, pages = index
    pages["/simple/pio-base/"] = (kind, text)
    with pytest.raises(RefusedError, match=reason):
        served.files("pio-base")


@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:9/simple/", "is the index running"), ("file:///tmp/", "not an address of http or https")],
)
def test_an_index_that_does_not_answer_is_refused(url, reason):
    """Silence is not the empty index."""
    with pytest.raises(RefusedError, match=reason):
        Index(url).files("pio-base")
