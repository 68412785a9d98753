"""What pending_releases says of a toy workspace, of which some is prepared, and of an index that it asks."""

import http.server
import json
import subprocess
import sys
import threading

import pytest

from workspace import ROOT

CHANGELOG = "# Changelog\n\n## 0.1.0 (2026-01-01)\n"


@pytest.fixture
def index():
    """An index of the simple API on loopback; its pages can be changed."""
    pages = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = pages.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *_):
            """Nothing on stderr."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.pages = pages
    server.address = f"http://127.0.0.1:{server.server_port}/simple/"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(toy, *arguments):
    command = [sys.executable, ROOT / "tools" / "pending_releases.py", "--root", toy.root, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def prepare(toy, name):
    toy.write(f"packages/{name}/CHANGELOG.md", CHANGELOG)
    (toy.root / f"packages/{name}/changelog.d/initial.added.md").unlink()


def test_only_what_is_prepared_and_missing(toy, index):
    """Lowest first; what is there in full is done, and half of it is not."""
    assert run(toy, "--index", index.address).stdout == "\n"
    prepare(toy, "pio-top")
    prepare(toy, "pio-base")
    assert json.loads(run(toy, "--index", index.address, "--json").stdout) == ["pio-base", "pio-top"]
    links = '<a href="{0}-py3-none-any.whl">{0}-py3-none-any.whl</a><a href="{0}.tar.gz">{0}.tar.gz</a>'
    index.pages["/simple/pio-base/"] = links.format("pio_base-0.1.0")
    index.pages["/simple/pio-top/"] = links.format("pio_top-0.1.0").partition("<a href=")[2].partition("</a>")[0]
    assert run(toy, "--index", index.address).stdout == "pio-top\n"
    toy.write("packages/pio-top/changelog.d/more.fixed.md", "More.\n")
    assert run(toy, "--index", index.address).stdout == "\n"


def test_an_index_that_does_not_answer(toy):
    """A line, and exit code 1: silence would mean that nothing is missing."""
    prepare(toy, "pio-base")
    done = run(toy, "--index", "http://127.0.0.1:9/simple/")
    assert done.returncode == 1
    assert done.stderr.startswith("pending_releases: http://127.0.0.1:9/simple/pio-base/")
