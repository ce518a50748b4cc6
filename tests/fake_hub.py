"""A Hugging Face Hub in memory, in place of the HTTP layer of huggingface_hub: the real client speaks to it."""

import base64
import hashlib
import json
from dataclasses import dataclass, field

import pytest

httpx2 = pytest.importorskip("httpx2", reason="this huggingface_hub speaks through another HTTP library")

TOKEN, READ_ONLY = "hf_writer", "hf_reader"


@dataclass
class FakeHub:
    """Repositories of models by name, each a dict of files by path; ``requests`` keeps what was asked."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)
    unreachable: bool = False

    def client(self):
        return httpx2.Client(transport=httpx2.MockTransport(self.answer))

    def answer(self, request):
        path = request.url.path.strip("/")
        self.requests.append((request.method, path))
        if self.unreachable:
            raise httpx2.ConnectError("no network", request=request)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if request.method == "POST":
            return self._write(path, request, token)
        if path.startswith("api/models/"):
            name = path.removeprefix("api/models/")
            return (
                httpx2.Response(200, json={"id": name}) if name in self.repositories else _refused(404, "RepoNotFound")
            )
        owner, name, resolve, revision, file = path.split("/", 4)
        assert resolve == "resolve"
        return self._file(f"{owner}/{name}", revision, file, token)

    def _write(self, path: str, request, token: str):
        if token != TOKEN:
            return httpx2.Response(403 if token else 401, json={"error": "you have no right to write here"})
        if path == "api/repos/create":
            asked = json.loads(request.content)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            existed = name in self.repositories
            self.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(name)
            return httpx2.Response(409 if existed else 200, json={"url": f"https://huggingface.co/{name}"})
        if path == "api/validate-yaml":
            return httpx2.Response(200, json={"errors": [], "warnings": []})
        _, _, owner, name, action, revision = path.split("/")
        if action == "preupload":
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in _files(request)]
            return httpx2.Response(200, json={"files": files})
        assert action == "commit"
        lines = [json.loads(line) for line in request.content.splitlines()]
        for line in lines:
            if line["key"] == "file":
                contents = base64.b64decode(line["value"]["content"])
                self.repositories[f"{owner}/{name}"][line["value"]["path"]] = contents
        url = f"https://huggingface.co/{owner}/{name}/commit/{COMMIT}"
        return httpx2.Response(200, json={"success": True, "commitUrl": url, "commitOid": COMMIT})

    def _file(self, name: str, revision: str, file: str, token: str):
        commit = {"X-Repo-Commit": COMMIT}
        if name not in self.repositories or (name in self.private and token not in (TOKEN, READ_ONLY)):
            return _refused(401, "RepoNotFound")
        if name in self.gated:
            return _refused(403, "GatedRepo")
        if revision not in ("main", COMMIT):
            return _refused(404, "RevisionNotFound")
        if file not in self.repositories[name]:
            return _refused(404, "EntryNotFound", commit)
        contents = self.repositories[name][file]
        etag = hashlib.sha256(contents).hexdigest()
        return httpx2.Response(200, content=contents, headers={"ETag": f'"{etag}"', **commit})


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _files(request) -> list[dict]:
    return json.loads(request.content)["files"]


def _refused(status: int, code: str, headers: dict[str, str] | None = None):
    return httpx2.Response(status, headers={"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})
