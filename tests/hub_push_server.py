"""The part of the hub that takes uploads: create-repo, validate-yaml, preupload, LFS batch and PUT, commit."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

from hub_server import sha256


@dataclass
class PushServer:
    """A hub on 127.0.0.1 to push to; what is committed lies in `repos` under its name."""

    token: str = "hf_write"
    owner: str = "me"  # where the token may write
    fail_at: str = ""  # a word in the path of requests that are answered with 500
    wait_at: str = ""  # a word in the path of a request that is not answered
    waiting: Event = field(default_factory=Event)  # is set when such a request has come
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by sha256, before their commit
    requests: list[str] = field(default_factory=list)

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: PushServer

    def do_POST(self) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if hub.wait_at and hub.wait_at in path:
            hub.waiting.set()
            return None
        if hub.fail_at and hub.fail_at in path:
            return self._answer(500, {"error": "out of order"})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.command == "PUT":  # to storage, which knows no token
            hub.stored[path.rpartition("/")[2]] = body
            return self._answer(200, {})
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._answer(401, {"error": "Invalid credentials"}, "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or hub.owner}/{wanted['name']}"
            if not name.startswith(f"{hub.owner}/"):
                return self._answer(403, {"error": "no rights"}, "You don't have the rights to create a model there")
            if name in hub.repos:
                return self._answer(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
            hub.repos[name] = {}
            hub.private[name] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            return self._answer(200, {"url": f"{hub.url}/{name}", "id": name})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": [file | {"shouldIgnore": False, "oid": None} for file in files]})
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{hub.url}/storage/{entry['oid']}", "header": {}}}}
                for entry in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            files = hub.repos[found[1]]
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    content = hub.stored[value["oid"]]
                    assert sha256(content) == value["oid"] and len(content) == value["size"]
                    files[value["path"]] = content
            commit = f"{hub.url}/{found[1]}/commit/{'0' * 40}"
            return self._answer(200, {"commitUrl": commit, "commitOid": "0" * 40, "success": True})
        self._answer(404, {"error": f"unknown {path}"})

    do_PUT = do_POST

    def do_GET(self) -> None:
        self.hub.requests.append(f"GET {self.path}")
        self._answer(404, {"error": "not found"})

    def _answer(self, status: int, content: dict[str, Any], message: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if message:
            self.send_header("X-Error-Message", message)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
