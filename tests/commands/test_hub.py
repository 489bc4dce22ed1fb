"""``dsrl export --push_to_hub`` against a server that answers as Hugging Face's hub does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra hub")

MADE = "/api/repos/create"


class Answers(BaseHTTPRequestHandler):
    """The three requests of an upload: a repository, how each file is to come, a commit with the files."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        server.asked.append((self.path, body))
        answer, status = {}, 200
        if server.refuses:
            answer, status = {"error": "Invalid token"}, 401
        elif self.path == MADE:
            answer = {"url": f"{server.address}/somebody/steered"}
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            answer = {"files": files}
        elif "/commit/" in self.path:
            answer = {
                "commitUrl": f"{server.address}/somebody/steered/commit/0",
                "commitOid": "0",
                "success": True,
            }
        self._say(answer, status)

    def do_GET(self) -> None:
        self._say({"id": "somebody/steered", "siblings": [], "sha": "0"}, 200)

    def _say(self, answer: dict, status: int) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[tuple[str, str]] = []
        self.refuses = False

    @property
    def committed(self) -> dict[str, bytes]:
        """The files of the last commit."""
        lines = [json.loads(line) for line in self.asked[-1][1].splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        return {file["path"]: base64.b64decode(file["content"]) for file in files}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    yield server
    server.shutdown()
    server.server_close()


def test_the_folder_is_uploaded_whole(
    run_command: Callable, golden_files: Path, tmp_path: Path, hub: HubServer
) -> None:
    folder = tmp_path / "shared"
    argv = ["export", golden_files / "stage2", "--out", folder, "--with_base", "--push_to_hub", "somebody/steered"]
    done = run_command(argv)
    assert done.status == 0, done.err
    assert done.out.splitlines()[-1] == f"{hub.address}/somebody/steered"
    made = json.loads(next(body for path, body in hub.asked if path == MADE))
    assert made.get("visibility") == "private" or made["private"]  # of newer and of older clients
    assert hub.committed == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_the_hub_refuses_stays_whole(
    run_command: Callable, golden_files: Path, tmp_path: Path, hub: HubServer
) -> None:
    hub.refuses = True
    folder = tmp_path / "shared"
    argv = ["export", golden_files / "stage2", "--out", folder, "--push_to_hub", "somebody/steered"]
    done = run_command(argv)
    assert done.status == 2 and len(done.error_lines) == 1
    assert f"hf upload somebody/steered {folder}" in done.err and "401" in done.err
    assert {file.name for file in folder.iterdir()} == {"README.md", "export.json", "latent_policy.safetensors"}


def test_a_name_that_no_repository_can_have_is_refused_before_anything_is_written(
    run_command: Callable, golden_files: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    done = run_command(["export", golden_files / "stage2", "--out", folder, "--push_to_hub", "a/b/c"])
    assert done.status == 2 and done.error_lines == [
        "dsrl export: error: --push_to_hub: expected OWNER/NAME, got 'a/b/c'"
    ]
    assert not folder.exists()
