"""Downloads from a server on this machine: whole, resumed, broken off, refused."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from envs.datasets.download import download
from mpdiffuser.errors import InputError


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at every path but /absent, by range unless `ranges` is off, `sent` bytes an answer at most."""

    content: bytes
    ranges = True
    sent: int | None = None
    asked: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content, wanted = self.server.content, self.headers["Range"]
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if self.path == "/absent":
            self.send_error(404)
            return
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.sent])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with h5py.File(tmp_path / "source", "w") as data:
        data["x"] = np.random.default_rng(0).normal(size=5000)
    server = Server(("127.0.0.1", 0), Handler)
    server.content, server.asked = (tmp_path / "source").read_bytes(), []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address(server: Server, path: str = "/file.hdf5") -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_whole(server: Server, tmp_path: Path) -> None:
    file = download(address(server), tmp_path / "cache" / "file.hdf5")
    assert file.read_bytes() == server.content and [f.name for f in file.parent.iterdir()] == ["file.hdf5"]
    assert download(address(server), file) == file and server.asked == [None]  # never twice


@pytest.mark.parametrize("ranges", [True, False])
def test_resumed(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges, half = ranges, len(server.content) // 2
    (tmp_path / "file.hdf5.partial").write_bytes(server.content[:half])
    file = download(address(server), tmp_path / "file.hdf5")
    assert file.read_bytes() == server.content
    assert server.asked == [f"bytes={half}-"] and not (tmp_path / "file.hdf5.partial").exists()


def test_all_but_the_renaming_was_done(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.hdf5.partial").write_bytes(server.content)
    assert download(address(server), tmp_path / "file.hdf5").read_bytes() == server.content


def test_broken_off_then_continued(server: Server, tmp_path: Path) -> None:
    server.sent = 9000
    for _ in range(2):
        with pytest.raises(InputError, match=r"127.0.0.1.*file.hdf5.*the same command continues"):
            download(address(server), tmp_path / "file.hdf5", timeout=5)
    assert not (tmp_path / "file.hdf5").exists()
    assert (tmp_path / "file.hdf5.partial").stat().st_size == 18000
    server.sent = None
    assert download(address(server), tmp_path / "file.hdf5").read_bytes() == server.content


def test_an_npz(server: Server, tmp_path: Path) -> None:
    np.savez(tmp_path / "source.npz", x=np.arange(5))
    server.content = (tmp_path / "source.npz").read_bytes()
    file = download(f"http://127.0.0.1:{server.server_port}/data", tmp_path / "data.npz")
    assert file.read_bytes() == server.content
    with pytest.raises(InputError, match=r"are not the HDF5 file expected"):
        download(f"http://127.0.0.1:{server.server_port}/data", tmp_path / "data.hdf5")


def test_something_else(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>moved</html>"
    with pytest.raises(InputError, match=r"sent 18 bytes that are not the HDF5 file expected as .*file.hdf5"):
        download(address(server), tmp_path / "file.hdf5")
    (tmp_path / "file.hdf5.partial").write_bytes(b"more than there is to be had")
    with pytest.raises(InputError, match=r"sent 28 bytes"):
        download(address(server), tmp_path / "file.hdf5")
    assert not list(tmp_path.glob("file*"))


def test_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: .*404"):
        download(address(server, "/absent"), tmp_path / "file.hdf5")
    with pytest.raises(InputError, match=r"http://127.0.0.1:1/x: .*refused"):
        download("http://127.0.0.1:1/x", tmp_path / "file.hdf5")
