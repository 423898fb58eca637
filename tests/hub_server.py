"""A server on loopback that speaks the part of the hub's HTTP interface that models need.

Repositories are folders: ROOT/org/name/COMMIT/ with the files of a commit, and refs.json with the
commit of each branch. Names that begin with "gated" or "secret" are refused without TOKEN. Large
files are at another server, as those of the hub are, which knows ranges.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_that_nobody_may_see"


def listen(answer: Callable[[BaseHTTPRequestHandler], None]) -> str:
    """Starts a server in a thread; returns its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self):
            answer(self)

        do_GET = do_HEAD = do_POST = handle_any

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def run_client(hub: "Hub", folder: Path, code: str, *arguments, check=True, **environment):
    """Runs Python code as a user of the hub, whose cache is in `folder`.

    It is a process, since huggingface_hub reads the environment when it is imported.
    """
    here = folder / "here"
    here.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=here,
        env={name: value for name, value in os.environ.items() if name[:3] != "HF_"}
        | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home")}
        | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert TOKEN not in done.stdout + done.stderr
    assert not check or done.returncode == 0, done.stderr
    return done


class Hub:
    """Serves the repositories in a folder.

    Attributes:
      requests: method and path of each request.
      large: bytes from which a file is at the other server, to which requests are redirected.
      large_requests: method and headers of each request there.
      cut: number of answers there that end after half of the bytes.
    """

    def __init__(self, root: Path):
        self.root, self.requests, self.large_requests = root, [], []
        self.large, self.cut = 1 << 30, 0

        def answer(request):
            self.requests.append((request.command, unquote(request.path)))
            self.answer(request)

        self.url, self.large_url = listen(answer), listen(self.send_large)

    def send_large(self, request: BaseHTTPRequestHandler) -> None:
        """Sends a file, or a range of it, from the other server."""
        self.large_requests.append((request.command, request.headers))
        data = (self.root / unquote(request.path).strip("/")).read_bytes()
        headers, status, start = {"ETag": '"large"', "Accept-Ranges": "bytes"}, 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")):
            status, start = 206, int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            if start >= len(data):
                headers["Content-Range"] = f"bytes */{len(data)}"
                return send(request, 416, b"", headers)
        rest = data[start:]
        if request.command == "GET" and self.cut:
            self.cut -= 1
            request.close_connection = True
            return send(request, status, rest, headers, most=len(rest) // 2)
        return send(request, status, rest, headers)

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
            fields = json.loads(body)
            name = f"{fields.get('organization') or 'me'}/{fields['name']}"
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
            commit_info = {"id": name, "sha": commit, "siblings": siblings, "private": False}
            return send(request, 200, commit_info | {"gated": False, "tags": [], "downloads": 0})
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
        headers |= {"ETag": f'"{etag(target)}"'}
        if (size := target.stat().st_size) >= self.large:
            headers |= {"X-Linked-Size": str(size), "X-Linked-ETag": headers["ETag"]}
            location = f"{self.large_url}/{target.relative_to(self.root).as_posix()}"
            return send(request, 302, b"", headers | {"Location": location})
        return send(request, 200, target.read_bytes(), headers)

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


def send(request: BaseHTTPRequestHandler, status: int, value, headers=None, most=None) -> None:
    """Sends an answer; `most` is the number of bytes after which it ends too early."""
    is_file = isinstance(value, bytes)
    data = value if is_file else json.dumps(value).encode()
    request.send_response(status)
    kind = "application/octet-stream" if is_file else "application/json"
    for name, text in {"Content-Type": kind, **(headers or {})}.items():
        request.send_header(name, text)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data[:most])
