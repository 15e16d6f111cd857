"""A small Hugging Face hub on 127.0.0.1: the model API, /resolve/, and a CDN on a second port for large files.

It answers over real sockets, and fails on request: see the attributes of HubServer.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 64 * 1024  # from this size on a file is stored as the hub stores large ones: sha256, and a redirect


@dataclass
class Request:
    host: str  # "hub" or "cdn"
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Failure:
    """The next `times` requests to the host whose "METHOD path" contains the word fail."""

    host: str
    word: str
    status: int = 0  # 0: the connection is reset
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1


@dataclass
class HubServer:
    repos: dict[str, dict[str, bytes]]
    corrupt: set[str] = field(default_factory=set)  # files that are sent with wrong bytes
    cuts: int = 0  # how many of the next large files end in the middle, after cut_at bytes
    cut_at: int = 0
    cut_by_reset: bool = False
    bytes_per_second: float = 0.0  # 0: unlimited
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0  # before every answer
    token: str = ""  # required as "Bearer <token>" when set
    stale_token: str = ""  # rejected for every repository, as the hub does
    expired_links: int = 0  # how many of the next links to the CDN have expired before they are followed
    renamed: dict[str, str] = field(default_factory=dict)  # old name → canonical name, redirected with 307
    statuses: dict[str, tuple[int, str]] = field(default_factory=dict)  # repo → status and X-Error-Code
    extra_names: list[str] = field(default_factory=list)  # more names in every listing
    hide_hashes: bool = False
    ignore_range: bool = False
    commit: str = COMMIT
    revisions: set[str] = field(default_factory=lambda: {"main"})  # branches and tags, all of that commit
    portal: bool = False  # every answer is a login page
    down: bool = False
    requests: list[Request] = field(default_factory=list)
    bytes_served: int = 0

    def start(self) -> None:
        self.servers = {host: self._listen(host) for host in ("hub", "cdn")}
        self.url, self.cdn = (f"http://127.0.0.1:{self.servers[host].server_address[1]}" for host in ("hub", "cdn"))

    def _listen(self, host: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "host": host})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def stop(self) -> None:
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def asked(self, host: str, word: str) -> list[Request]:
        return [request for request in self.requests if request.host == host and word in request.path]

    def listing(self, repo: str) -> dict[str, Any]:
        """What /api/models/<repo>?blobs=true answers."""
        siblings: list[dict[str, Any]] = []
        for name, content in self.repos[repo].items():
            entry: dict[str, Any] = {"rfilename": name}
            if not self.hide_hashes:
                entry |= {"size": len(content), "blobId": git_sha1(content)}
                if len(content) >= LARGE:
                    pointer = b"version https://git-lfs.github.com/spec/v1\n"
                    entry["blobId"] = git_sha1(pointer)
                    entry["lfs"] = {
                        "sha256": sha256(content),
                        "size": len(content),
                        "pointerSize": len(pointer),
                    }
            siblings.append(entry)
        siblings += [{"rfilename": name, "size": 1, "blobId": git_sha1(b"x")} for name in self.extra_names]
        return {
            "_id": "0",
            "id": repo.removeprefix("datasets/"),
            "modelId": repo,
            "sha": self.commit,
            "private": False,
            "siblings": siblings,
        }

    def tree(self, repo: str, folder: str) -> list[dict[str, Any]]:
        """What /api/datasets/<repo>/tree/<revision>/<folder> answers: its files and folders."""
        entries: dict[str, dict[str, Any]] = {}
        prefix = f"{folder}/" if folder else ""
        for name, content in self.repos[repo].items():
            if name.startswith(prefix):
                path = prefix + name.removeprefix(prefix).split("/")[0]
                kind = "file" if path == name else "directory"
                size = len(content) if path == name else 0
                entries[path] = {"type": kind, "path": path, "size": size, "oid": git_sha1(content)}
        return list(entries.values())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    host: str

    def do_GET(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        hub.requests.append(Request(self.host, self.command, self.path, dict(self.headers)))
        time.sleep(hub.seconds)
        if failure := self._next_failure(f"{self.command} {self.path}"):
            return self._fail(failure)
        if hub.down:
            return self._answer(503, b"down")
        if hub.portal:
            return self._answer(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        if self.host == "cdn":
            if "signature=valid" not in self.path:
                return self._answer(403, b"Request has expired")
            content = next(c for files in hub.repos.values() for c in files.values() if path.endswith(sha256(c)))
            return self._send(path, content)
        if path == "/":
            return self._answer(200, b"a hub")
        for old, canonical in hub.renamed.items():
            api = f"/api/{old}" if old.startswith("datasets/") else f"/api/models/{old}"
            if path.startswith((f"{api}/", f"/{old}/resolve/")) or path == api:
                return self._answer(307, b"", {"Location": self.path.replace(old, canonical, 1)})
        if api := re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/(revision|tree)/([^/]+)/?(.*))?", path):
            repo = api[2] if api[1] == "models" else f"datasets/{api[2]}"
            if not self._refused(repo) and not self._unknown(api[4] or ""):
                listing = hub.listing(repo) if api[3] != "tree" else hub.tree(repo, api[5])
                self._answer(200, json.dumps(listing).encode())
            return None
        repo, _, rest = path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        if self._refused(repo) or self._unknown(revision):
            return None
        if name not in hub.repos[repo]:
            return self._answer(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        content = hub.repos[repo][name]
        if len(content) < LARGE:
            headers = {"ETag": f'"{git_sha1(content)}"', "X-Repo-Commit": hub.commit}
            return self._answer(200, flipped(content) if name in hub.corrupt else content, headers)
        location = f"{hub.cdn}/{name}/{sha256(content)}?signature={'expired' if hub.expired_links else 'valid'}"
        hub.expired_links = max(0, hub.expired_links - 1)
        headers = {"Location": location, "X-Linked-Size": str(len(content)), "X-Repo-Commit": hub.commit}
        return self._answer(302, b"", headers | {"X-Linked-Etag": f'"{sha256(content)}"'})

    do_HEAD = do_GET

    def _next_failure(self, request: str) -> Failure | None:
        for failure in self.hub.failures:
            if failure.times and failure.host == self.host and failure.word in request:
                failure.times -= 1
                return failure
        return None

    def _fail(self, failure: Failure) -> None:
        if failure.status:
            return self._answer(failure.status, b"", failure.headers)
        self._reset()

    def _reset(self) -> None:
        """Close the connection with a TCP reset, which a linger time of zero causes."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def _unknown(self, revision: str) -> bool:
        if revision in ("", self.hub.commit) or revision in self.hub.revisions:
            return False
        self._answer(404, b"Revision not found", {"X-Error-Code": "RevisionNotFound"})
        return True

    def _refused(self, repo: str) -> bool:
        """Answer an error as the hub does: a missing model is a 401 for a request without a token."""
        sent = self.headers.get("Authorization", "")
        if self.hub.stale_token and sent == f"Bearer {self.hub.stale_token}":
            self._answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return True
        if repo in self.hub.statuses:
            status, code = self.hub.statuses[repo]
        elif self.hub.token and sent != f"Bearer {self.hub.token}":
            status, code = 401, "RepoNotFound"
        elif repo not in self.hub.repos:
            status, code = (404 if sent else 401), "RepoNotFound"
        else:
            return False
        self._answer(status, b"Repository not found", {"X-Error-Code": code})
        return True

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send(self, path: str, content: bytes) -> None:
        """Send a large file from the byte that Range names; cut, slow or corrupt if a test asks for it."""
        hub = self.hub
        wanted = "" if hub.ignore_range else self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        body = (flipped(content) if path.split("/")[1] in hub.corrupt else content)[start:]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cut := hub.cuts > 0:
            hub.cuts -= 1
            body, self.close_connection = body[: hub.cut_at], True
        for offset in range(0, len(body), 16 * 1024):
            chunk = body[offset : offset + 16 * 1024]
            try:
                self.wfile.write(chunk)
            except OSError:  # the client was killed
                self.close_connection = True
                return
            hub.bytes_served += len(chunk)
            time.sleep(len(chunk) / hub.bytes_per_second if hub.bytes_per_second else 0)
        if cut and hub.cut_by_reset:
            self._reset()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def flipped(content: bytes) -> bytes:
    """The same length with one bit changed in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
