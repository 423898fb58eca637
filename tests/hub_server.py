"""A server on loopback that speaks the part of the hub's HTTP interface that models need.

Repositories are folders: ROOT/org/name/COMMIT/ with the files of a commit, and refs.json with the
commit of each branch. Names that begin with "gated" or "secret" are refused without TOKEN.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_that_nobody_may_see"


class Hub:
    """Serves the repositories in a folder; `requests` has the method and path of each request."""

    def __init__(self, root: Path):
        self.root, self.requests = root, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                hub.requests.append((self.command, unquote(self.path)))
                hub.answer(self)

            do_GET = do_HEAD = do_POST = handle_any

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds a commit with these files to a repository; returns its hash."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        for path, data in files.items():
            target = self.root / name / commit / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        refs = self.root / name / "refs.json"
        known = json.loads(refs.read_text()) if refs.is_file() else {}
        refs.write_text(json.dumps(known | {branch: commit}))
        return commit

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path).strip("/").split("/")
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length)
        if path[:2] == ["api", "whoami-v2"]:
            return send(request, 200, {"type": "user", "name": "me", "orgs": []})
        if path[:2] == ["api", "validate-yaml"]:
            bad = "license: no-such" in json.loads(body)["content"]
            error = [{"message": '"license" must be one of the known ones'}] if bad else []
            return send(request, 400 if bad else 200, {"errors": error, "warnings": []})
        if path[:3] == ["api", "repos", "create"]:
            about = json.loads(body)
            name = f"{about.get('organization') or 'me'}/{about['name']}"
            (self.root / name).mkdir(parents=True, exist_ok=True)
            return send(request, 200, {"url": f"{self.url}/{name}"})
        name = "/".join(path[2:4] if path[0] == "api" else path[:2])
        if not self.is_allowed(request, name):
            return None
        rest = path[4:] if path[0] == "api" else path[2:]
        if request.command == "POST":
            return self.change(request, name, rest, body)
        return self.show(request, name, rest)

    def is_allowed(self, request: BaseHTTPRequestHandler, name: str) -> bool:
        """Whether a repository may be seen; otherwise the refusal is sent."""
        has_token = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        short = name.partition("/")[2]
        if short.startswith("gated") and not has_token:
            send(request, 403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        elif not (self.root / name).is_dir() or (short.startswith("secret") and not has_token):
            send(request, 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        else:
            return True
        return False

    def find_commit(self, name: str, revision: str) -> str | None:
        refs = self.root / name / "refs.json"
        known = json.loads(refs.read_text()) if refs.is_file() else {}
        return known.get(revision, revision if revision in known.values() else None)

    def show(self, request: BaseHTTPRequestHandler, name: str, rest: list[str]) -> None:
        if not rest:
            kind, revision, path = "revision", "main", ""
        else:
            kind, revision, path = rest[0], rest[1], "/".join(rest[2:])
            if kind == "revision":  # a branch can have slashes
                revision = "/".join(rest[1:])
        commit = self.find_commit(name, revision)
        if commit is None:
            error = {"error": f"Invalid rev id: {revision}"}
            return send(request, 404, error, {"X-Error-Code": "RevisionNotFound"})
        folder = self.root / name / commit
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        names = [p.relative_to(folder).as_posix() for p in files]
        if kind == "revision":
            siblings = [{"rfilename": name} for name in names]
            about = {"id": name, "sha": commit, "siblings": siblings, "private": False}
            return send(request, 200, about | {"gated": False, "tags": [], "downloads": 0})
        if kind == "tree":
            tree = [
                {"type": "file", "path": n, "size": p.stat().st_size, "oid": etag(p)}
                for n, p in zip(names, files, strict=True)
            ]
            return send(request, 200, tree)
        target = folder / path
        headers = {"X-Repo-Commit": commit}
        if not target.is_file():
            error = {"error": "Entry not found"}
            return send(request, 404, error, headers | {"X-Error-Code": "EntryNotFound"})
        return send(request, 200, target.read_bytes(), headers | {"ETag": f'"{etag(target)}"'})

    def change(self, request: BaseHTTPRequestHandler, name: str, rest: list[str], body) -> None:
        if rest[0] == "branch":
            refs = self.root / name / "refs.json"
            known = json.loads(refs.read_text()) if refs.is_file() else {}
            known.setdefault("/".join(rest[1:]), known.get("main"))
            refs.write_text(json.dumps(known))
            return send(request, 200, {})
        if rest[0] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return send(request, 200, {"files": files})
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commit = self.add(name, files, "/".join(rest[1:]))
        url = f"{self.url}/{name}/commit/{commit}"
        return send(request, 200, {"commitUrl": url, "commitOid": commit, "success": True})


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def send(request: BaseHTTPRequestHandler, status: int, value, headers=None) -> None:
    is_file = isinstance(value, bytes)
    data = value if is_file else json.dumps(value).encode()
    request.send_response(status)
    kind = "application/octet-stream" if is_file else "application/json"
    for name, text in {"Content-Type": kind, **(headers or {})}.items():
        request.send_header(name, text)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)
