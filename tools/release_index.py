"""What a package index holds, read by the simple API (PEP 503 in HTML, PEP 691 in JSON)."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urldefrag, urljoin, urlsplit

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)

from release_refusal import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from packaging.version import Version

_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFile:
    """One file of a project on an index.

    Attributes:
        name: Its file name.
        url: Where it is.
        sha256: Its hash, empty if the index does not say.
    """

    name: str
    url: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Index:
    """An index of the simple API.

    Attributes:
        url: Of its root, such as ``http://127.0.0.1:8080/simple/``.
    """

    url: str

    def files(self, name: str) -> dict[str, IndexFile]:
        """Files of the project ``name`` by file name, yanked ones included; empty if the index does not know it.

        Raises:
            RefusedError: No answer, or one that is not an index's.
        """
        place = urljoin(self.url.rstrip("/") + "/", f"{canonicalize_name(name)}/")
        answered = _get(place, _ACCEPT)
        if answered is None:
            return {}
        kind, body, place = answered
        if kind == _JSON:
            try:
                found = [_from_json(entry, place) for entry in json.loads(body)["files"]]
            except (KeyError, TypeError, ValueError) as error:
                raise RefusedError(f"{place}: not an index's answer: {error!r}") from error
        elif kind.endswith("html"):
            found = list(_from_html(body.decode("utf-8", errors="replace"), place))
        else:
            raise RefusedError(f"{place}: answers with {kind or 'no content type'}, not with a page of the simple API")
        return {file.name: file for file in found}

    def versions(self, name: str) -> set[Version]:
        """Versions of the project ``name`` with at least one file."""
        return {version for file in self.files(name) if (version := version_of(file)) is not None}


def version_of(filename: str) -> Version | None:
    """The version in the name of a wheel or a source distribution; None for any other file."""
    try:
        return parse_wheel_filename(filename)[1] if filename.endswith(".whl") else parse_sdist_filename(filename)[1]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None


def sha256_of(file: IndexFile) -> str:
    """The hash of ``file``: as the index says, or of its bytes.

    Raises:
        RefusedError: No answer.
    """
    if file.sha256:
        return file.sha256
    answered = _get(file.url, "*/*")
    if answered is None:
        raise RefusedError(f"{file.url}: listed, and not there")
    return hashlib.sha256(answered[1]).hexdigest()


def _get(url: str, accept: str) -> tuple[str, bytes, str] | None:
    """Content type, body and final address; None where there is nothing."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise RefusedError(f"{url}: not an address of http or https")
    request = urllib.request.Request(url, headers={"Accept": accept, "Cache-Control": "no-cache"})  # noqa: S310 - http(s): just checked
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310 - the same
            return answer.headers.get_content_type(), answer.read(), answer.geturl()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise RefusedError(f"{url}: {error.code} {error.reason}") from error
    except (urllib.error.URLError, TimeoutError) as error:
        raise RefusedError(f"{url}: {getattr(error, 'reason', error)}: is the index running?") from error


def _from_json(entry: dict[str, object], place: str) -> IndexFile:
    hashes = entry.get("hashes")
    sha256 = str(hashes.get("sha256", "")) if isinstance(hashes, dict) else ""
    return IndexFile(name=str(entry["filename"]), url=urljoin(place, str(entry["url"])), sha256=sha256)


def _from_html(text: str, place: str) -> Iterator[IndexFile]:
    parser = _Links()
    parser.feed(text)
    for link in parser.links:
        url, fragment = urldefrag(urljoin(place, link))
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        if version_of(name) is not None:
            yield IndexFile(name=name, url=url, sha256="".join(parse_qs(fragment).get("sha256", [])))


class _Links(HTMLParser):
    """Collects where links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the address of a link."""
        if tag == "a":
            self.links += [value for key, value in attrs if key == "href" and value]
