"""Times our UNet over latent sizes, batches and threads, and prints a table: how cost grows with each.

    cargo build --release -p sd-bench --example random_model --example time_stages
    target/release/examples/random_model v1.5 /tmp/sd15
    python benches/peers/growth.py /tmp/sd15 f32 bf16

A cell is the median of three calls after a first one. Nothing else may run.
"""

import argparse
import json
import os
import statistics
import subprocess

# Latents' side and batch.
CALLS = [(16, 2), (32, 2), (64, 2), (128, 2), (32, 1), (32, 4), (32, 8)]


def times(program, folder, dtype, threads):
    """Seconds of each call."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        [program, folder, dtype], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()

    def call(side, batch):
        print("unet", batch, side, file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())["seconds"]

    found = []
    for size in CALLS:
        call(*size)
        found.append(statistics.median(call(*size) for _ in range(3)))
    process.stdin.close()
    process.wait()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("dtypes", nargs="+")
    parser.add_argument("--program", default="target/release/examples/time_stages")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, len(os.sched_getaffinity(0))])
    options = parser.parse_args()

    columns = [(dtype, threads) for dtype in options.dtypes for threads in options.threads]
    found = [times(options.program, options.folder, *column) for column in columns]
    names = [f"{dtype}, {threads} thread{'s' * (threads > 1)}" for dtype, threads in columns]
    print("| batch x latents | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for i, (side, batch) in enumerate(CALLS):
        cells = " | ".join(f"{seconds[i]:.3g}" for seconds in found)
        print(f"| {batch} x {side}x{side} | {cells} |")


if __name__ == "__main__":
    main()
