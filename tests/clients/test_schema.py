"""Schemathesis holds the worker to its own description: every answer is one that the description allows."""

import os
import subprocess
import sys
from pathlib import Path

import requests

from worker import KEY, running

SECONDS = int(os.environ.get("SCHEMA_SECONDS", "60"))
# Small jobs: what is tested is the service, not the model.
LIMITS = "max-steps = 2\nmax-images = 2\nmax-pixels = 16384\nmax-queue = 64\n"


def test_every_answer_is_described():
    here = Path(__file__).parent
    with running(LIMITS) as worker:
        command = [Path(sys.executable).parent / "st", "--config-file", here / "schemathesis.toml", "run"]
        command += [worker.url + "/openapi.json", "-H", f"Authorization: Bearer {KEY}", "-c", "all"]
        # DELETE cancels a job; the job itself, and what it has drawn, can be looked up until they expire.
        command += ["--exclude-checks", "use_after_free"]
        command += ["--phases", "examples,coverage,fuzzing,stateful", "--max-time", str(SECONDS), "--rate-limit", "auto"]
        command += ["--request-timeout", "60", "--seed", "42"]
        done = subprocess.run(command, cwd=worker.log.parent, capture_output=True, text=True, timeout=SECONDS + 300)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        print(done.stdout[-2000:])
        assert requests.get(worker.url + "/health", timeout=5).ok
