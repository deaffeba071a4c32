"""How the worker bears a crowd: listeners on a full queue, and many jobs one after another.

    SD_WORKER=target/release/sd-worker python tests/clients/load.py [--listeners 200] [--jobs 1000]

Prints the figures for docs/performance.md, and fails when one is out of bounds.
"""

import argparse
import statistics
import threading
import time

import requests

from worker import headers, running

QUEUE = 64
JOB = {"operation": "image_generation", "prompt": "a red circle", "width": 64, "height": 64, "steps": 2}
MAX_HEALTH_SECONDS = 0.1
MAX_GROWTH_BYTES = 32 << 20
WARM_UP_JOBS = 100


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--listeners", type=int, default=200)
    arguments.add_argument("--jobs", type=int, default=1000)
    asked = arguments.parse_args()
    if asked.listeners:
        with running(f"max-queue = {QUEUE}\n") as worker:
            listen(worker, asked.listeners)
    if asked.jobs:
        with running(f"max-queue = {QUEUE}\n") as worker:
            endure(worker, asked.jobs)


def submit(worker, **fields) -> str:
    """Hands in a job, waiting for a place in the queue."""
    while True:
        answer = worker.post("/v1/jobs", json=JOB | fields)
        if answer.status_code == 202:
            return answer.json()["job_id"]
        assert answer.status_code == 429, answer.text
        time.sleep(float(answer.headers["Retry-After"]) / 10)


def listen(worker, listeners: int):
    """Listeners on a queue that stays full, while somebody asks whether the worker is well."""
    jobs = []
    while True:
        answer = worker.post("/v1/jobs", json=JOB | {"steps": 50})
        if answer.status_code == 429:
            break
        jobs.append(answer.json()["job_id"])
    steps, connected, failures = [0] * listeners, threading.Barrier(listeners + 1), []

    def listener(index: int):
        try:
            url = f"{worker.url}/v1/jobs/{jobs[index % len(jobs)]}/stream"
            with requests.get(url, headers=headers(), stream=True, timeout=600) as events:
                connected.wait(60)
                for line in events.iter_lines():
                    steps[index] += line == b"event: progress"
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=listener, args=(index,)) for index in range(listeners)]
    for thread in threads:
        thread.start()
    connected.wait(60)
    health, started = [], time.monotonic()
    with requests.Session() as session:
        while any(thread.is_alive() for thread in threads):
            asked = time.monotonic()
            assert session.get(worker.url + "/health", timeout=10).ok
            health.append(time.monotonic() - asked)
            time.sleep(0.05)
    seconds = time.monotonic() - started
    assert not failures, failures[:3]
    assert all(seen == 50 for seen in steps), f"listeners missed steps: {sorted(set(steps))}"
    median, slow, worst = statistics.median(health), statistics.quantiles(health, n=100)[-1], max(health)
    print(f"{listeners} listeners, {len(jobs)} jobs of 50 steps in {seconds:.1f} s, every listener saw every step")
    print(f"/health over {len(health)} requests: median {median * 1e3:.1f} ms, "
          f"99 of 100 within {slow * 1e3:.1f} ms, worst {worst * 1e3:.1f} ms")
    assert slow < MAX_HEALTH_SECONDS, "slower than it may be"


def endure(worker, count: int):
    """Many small jobs; memory may not grow with them."""
    started, memory = time.monotonic(), []
    for index in range(count):
        job = submit(worker, seed=index)
        if index % WARM_UP_JOBS == 0:
            memory.append(worker.resident_bytes())
    while worker.get(f"/v1/jobs/{job}").json()["status"] in ("queued", "running"):
        time.sleep(0.1)
    seconds = time.monotonic() - started
    memory.append(worker.resident_bytes())
    # The first reading is from before the model has run.
    growth = memory[-1] - memory[1] if len(memory) > 2 else 0
    print(f"{count} jobs of 2 steps in {seconds:.1f} s, {count / seconds:.1f} a second")
    print("resident memory each 100 jobs, MiB: " + " ".join(f"{bytes / 2**20:.0f}" for bytes in memory))
    assert growth < MAX_GROWTH_BYTES, f"memory grew by {growth / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
