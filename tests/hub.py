"""A stand-in for the hub on loopback: what huggingface_hub asks of it, over repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

# Who has which token; another one may only read.
TOKENS = {"token-of-me": "me", "token-of-you": "you"}
READ_ONLY = "token-that-reads"


@dataclass
class Repository:
    private: bool = False
    # Commits, the newest last: their identifier and their files.
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str) -> str:
        before = self.commits[-1][1] if self.commits else {}
        name = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits.append((name, {**before, **files}))
        self.messages.append(message)
        return name

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class Hub:
    """The server: `hub.address`, `hub.repositories`, and `hub.asked`, the methods and paths of all requests.

    `hub.broken` is a status that every request is answered with.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.hidden: set[str] = set()
        self.asked: list[str] = []
        self.broken = 0
        hub = self

        class Handler(_Handler):
            def answer(self) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                _answer(self, hub)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_GET  # noqa: N815

    @property
    def user(self) -> str:
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        return TOKENS.get(token, "reader" if token == READ_ONLY else "")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def tell(self, status: int, value: Any = None, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value or {}).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, error: str, code: str = "") -> None:
        self.tell(status, {"error": error}, **({"X_Error_Code": code} if code else {}), X_Error_Message=error)


def _answer(to: _Handler, hub: Hub) -> None:
    body, path = to.body(), urllib.parse.urlsplit(to.path).path
    if hub.broken:
        to.refuse(hub.broken, "in maintenance")
    elif path == "/api/repos/create":
        _create(to, hub, json.loads(body))
    elif path == "/api/validate-yaml":
        front = json.loads(body)["content"].split("---\n")[1]
        wrong = not isinstance(yaml.safe_load(front), dict)
        to.tell(*((400, {"errors": [{"message": "metadata is no mapping"}]}) if wrong else (200, {"warnings": []})))
    elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|preupload|commit)/(.+))?", path):
        _of_repository(to, hub, found[1], found[2] or "revision", urllib.parse.unquote(found[3] or "main"), body)
    elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        _resolve(to, hub, *map(urllib.parse.unquote, found.groups()))
    else:
        to.refuse(404, "nothing here")


def _seen(to: _Handler, hub: Hub, name: str) -> Repository | None:
    there = hub.repositories.get(name)
    if there is not None and name not in hub.hidden and (not there.private or to.user == name.partition("/")[0]):
        return there
    # As the hub has it: who is not logged in learns nothing.
    to.refuse(404 if to.user else 401, "Repository not found", "RepoNotFound" if to.user else "")
    return None


def _create(to: _Handler, hub: Hub, wanted: dict[str, Any]) -> None:
    name = f"{wanted['organization']}/{wanted['name']}"
    if not to.user:
        to.refuse(401, "Invalid username or password.")
    elif name in hub.repositories:
        to.refuse(409, "You already created this model repo")
    elif wanted["organization"] != to.user:
        to.refuse(403, f'You don\'t have the rights to create a model under the namespace "{wanted["organization"]}".')
    else:
        hub.repositories[name] = Repository(
            private=wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        hub.repositories[name].commit({".gitattributes": b""}, "initial commit")
        to.tell(200, {"url": f"{hub.address}/{name}"})


def _of_repository(to: _Handler, hub: Hub, name: str, what: str, revision: str, body: bytes) -> None:
    there = _seen(to, hub, name)
    if there is None:
        return
    commit = there.at(revision)
    if commit is None:
        to.refuse(404, "Invalid rev id", "RevisionNotFound")
    elif what == "revision":
        siblings = [{"rfilename": path} for path in commit[1]]
        to.tell(200, {"id": name, "sha": commit[0], "private": there.private, "siblings": siblings})
    elif not to.user:
        to.refuse(401, "Invalid username or password.")
    elif to.user != name.partition("/")[0]:
        to.refuse(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
    elif what == "preupload":
        files = [
            {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]
        ]
        to.tell(200, {"files": files})
    else:
        header, *operations = (json.loads(line) for line in body.splitlines())
        if header["value"].get("parentCommit") not in (None, commit[0]):
            to.refuse(412, "A commit has happened since. Please refresh and try again.")
            return
        files = {each["value"]["path"]: base64.b64decode(each["value"]["content"]) for each in operations}
        done = there.commit(files, header["value"]["summary"])
        to.tell(200, {"commitUrl": f"{hub.address}/{name}/commit/{done}", "commitOid": done})


def _resolve(to: _Handler, hub: Hub, name: str, revision: str, path: str) -> None:
    there = _seen(to, hub, name)
    if there is None:
        return
    commit = there.at(revision)
    if commit is None:
        to.refuse(404, "Invalid rev id", "RevisionNotFound")
    elif path not in commit[1]:
        to.tell(404, b"Entry not found", X_Error_Code="EntryNotFound", X_Repo_Commit=commit[0])
    else:
        content = commit[1][path]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        to.tell(200, content, ETag=etag, X_Repo_Commit=commit[0], Content_Type="application/octet-stream")
