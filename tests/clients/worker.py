"""A worker of its own for a test: the real binary, on a free port, with a store that goes away."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import requests

BINARY = Path(os.environ.get("SD_WORKER", "target/release/sd-worker")).resolve()
KEY = "a-key-for-tests"
START_SECONDS = 60


class Worker:
    """A running worker."""

    def __init__(self, port: int, process: subprocess.Popen, log: Path):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process = process
        self.log = log

    def get(self, path: str, **options) -> requests.Response:
        return requests.get(self.url + path, headers=headers(), timeout=60, **options)

    def post(self, path: str, **options) -> requests.Response:
        return requests.post(self.url + path, headers=headers(), timeout=600, **options)

    def resident_bytes(self) -> int:
        """Memory that the process holds, by the kernel's account."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def headers() -> dict:
    return {"Authorization": f"Bearer {KEY}"}


@contextmanager
def running(config: str = ""):
    """Starts a worker with the built-in model and `config` (TOML); stops it as a service manager would."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "keys").write_text(f"tests:{KEY}\n")
        (folder / "config.toml").write_text(config)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command = [BINARY, "serve", "--listen", f"127.0.0.1:{port}", "--data-dir", folder / "data"]
        command += ["--api-key-file", folder / "keys", "--config", folder / "config.toml"]
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            worker = Worker(port, process, log)
            wait_until_ready(worker)
            yield worker
            assert process.poll() is None, f"the worker ended early:\n{log.read_text()}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert code == 0, f"the worker ended with {code}:\n{log.read_text()}"


def wait_until_ready(worker: Worker):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if worker.process.poll() is not None:
            break
        try:
            if requests.get(worker.url + "/ready", timeout=5).ok:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the worker does not get ready:\n{worker.log.read_text()}")
