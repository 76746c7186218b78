"""Files from web servers and object stores: whole, once, and as they were meant."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoresume.errors import AutoresumeError, CheckpointInvalid, StorageFull, UsageError
from autoresume.restore import download as downloads
from autoresume.restore.download import download

DATA = bytes(range(256)) * 40_000  # 10 MB
DIGEST = hashlib.sha256(DATA).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """/ranges knows ranges, /whole does not; /cut ends each answer after a third. `asked` has what was asked for."""

    asked: list[str] = []

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        wanted = self.headers.get("Range", "")
        if body:
            self.asked.append(f"{self.path} {wanted}".strip())
        if "elsewhere" in self.path:
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        if "nothing" in self.path:
            self.send_error(404)
            return
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and "whole" not in self.path else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(DATA) - begin))
        self.end_headers()
        if body:
            end = begin + len(DATA) // 3 if "cut" in self.path else len(DATA)
            self.wfile.write(DATA[begin:end])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


@pytest.fixture(autouse=True)
def forget() -> None:
    Server.asked.clear()


def test_a_url_is_downloaded_once(server: str, tmp_path: Path) -> None:
    """The second call finds it, without asking; a digest that was asked for is compared."""
    path = download(f"{server}/ranges/model.pt", tmp_path)
    assert path.name == "model.pt"
    assert path.read_bytes() == DATA
    assert download(f"{server}/ranges/model.pt", tmp_path, DIGEST) == path
    assert Server.asked == ["/ranges/model.pt"]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("kind", ["cut", "whole"])
def test_an_interrupted_download_is_gone_on_with(kind: str, server: str, tmp_path: Path) -> None:
    """Where the connection is cut it goes on at the byte where it was; where the server knows no ranges, from the
    beginning."""
    place = tmp_path / downloads.digest(f"{server}/{kind}/model.pt".encode())[:12]
    place.mkdir()
    (place / "model.pt.part").write_bytes(DATA[:1000] if kind == "cut" else b"x" * 1000)
    assert download(f"{server}/{kind}/model.pt#sha256={DIGEST}", tmp_path).read_bytes() == DATA
    assert Server.asked[0] == f"/{kind}/model.pt bytes=1000-"
    assert len(Server.asked) == (3 if kind == "cut" else 1) or kind == "cut"


def test_other_bytes_than_were_meant(server: str, tmp_path: Path) -> None:
    """A wrong digest is an error, and what was downloaded is gone."""
    with pytest.raises(CheckpointInvalid, match="has the SHA-256"):
        download(f"{server}/ranges/model.pt", tmp_path, "0" * 64)
    assert not list(tmp_path.rglob("model.pt*"))


def test_what_can_not_be_had(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such file, no such server, no such protocol, no room: each a message, and nothing left behind."""
    for url, said in (
        (f"{server}/nothing/model.pt", "404"),
        (f"{server}/elsewhere/model.pt", "302"),  # to a file of this machine
        ("http://127.0.0.1:9/model.pt", "can't be reached"),
        ("gopher2://x/y", "no protocol"),
    ):
        with pytest.raises(UsageError, match=said):
            download(url, tmp_path)
    monkeypatch.setattr(downloads, "_HEADROOM_BYTES", 10**18)
    with pytest.raises(StorageFull, match="nothing was downloaded"):
        download(f"{server}/ranges/other.pt", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]


def test_many_at_once(server: str, tmp_path: Path) -> None:
    """Processes and threads that want the same file get one download."""
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(download(f"{server}/ranges/model.pt", tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert Server.asked == ["/ranges/model.pt"]


def test_a_file_system_of_fsspec(tmp_path: Path) -> None:
    """file:// as any other file system that fsspec knows: a file, and a folder with all that it holds."""
    there = tmp_path / "there" / "model"
    (there / "sub").mkdir(parents=True)
    (there / "a.bin").write_bytes(DATA[:5000])
    (there / "sub" / "b.bin").write_bytes(DATA[5000:9000])
    assert download(f"file://{there}/a.bin", tmp_path / "one").read_bytes() == DATA[:5000]
    folder = download(f"file://{there}", tmp_path / "two")
    assert (folder / "sub" / "b.bin").read_bytes() == DATA[5000:9000]
    with pytest.raises(AutoresumeError, match="there is no"):
        download(f"file://{there}/gone.bin", tmp_path / "three")


def test_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3://, against a real server of that protocol."""
    server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(port=0)
    running.start()
    try:
        host, port = running.get_host_and_port()
        for name, value in (("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "x"),
                            ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_DEFAULT_REGION", "us-east-1")):  # fmt: skip
            monkeypatch.setenv(name, value)
        store = s3fs.S3FileSystem(endpoint_url=f"http://{host}:{port}", skip_instance_cache=True)
        store.mkdir("weights")
        store.pipe("weights/run/model.pt", DATA[:100_000])
        store.pipe("weights/run/more.pt", DATA[:10])
        assert download("s3://weights/run/model.pt", tmp_path).read_bytes() == DATA[:100_000]
        assert sorted(path.name for path in download("s3://weights/run", tmp_path).iterdir()) == ["model.pt", "more.pt"]
        with pytest.raises(UsageError, match="there is no"):
            download("s3://weights/gone.pt", tmp_path)
    finally:
        running.stop()
