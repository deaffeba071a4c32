"""Times our stages and those of other programs in turn, on the same weights and inputs, and prints the ratios of medians.

    cargo build --release -p sd-bench --example random_model --example time_stages
    target/release/examples/random_model v1.5 /tmp/sd15
    pip install -r benches/peers/requirements.txt
    python benches/peers/compare.py /tmp/sd15 ours:f32 torch:f32 openvino:f32 --rounds 5

Peers are NAME:DTYPE. The first one is what the others are compared with. Nothing else may run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from safetensors.torch import load_file

STAGES = ["clip 2 0", "unet 2 64", "vae_decode 1 64", "vae_encode 1 64"]


class Peer:
    def __init__(self, name, folder, ours):
        self.name = name
        program, dtype = name.split(":")
        script = os.path.join(os.path.dirname(__file__), "stages.py")
        command = [ours, folder, dtype]
        if program != "ours":
            command = [sys.executable, script, program, folder, dtype]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended")
        return json.loads(line)

    def time(self, stage, file=""):
        print(stage, file, file=self.process.stdin, flush=True)
        return self.read()["seconds"]


def difference(file, reference):
    found, expected = load_file(file)["result"], load_file(reference)["result"]
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("peers", nargs="+")
    parser.add_argument("--stages", nargs="+", default=STAGES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ours", default="target/release/examples/time_stages")
    options = parser.parse_args()

    peers = [Peer(name, options.folder, options.ours) for name in options.peers]
    print("| stage | program | median s | least | most | ratio | difference |")
    print("|---|---|---|---|---|---|---|")
    for stage in options.stages:
        times = {peer.name: [] for peer in peers}
        with tempfile.TemporaryDirectory() as folder:
            files = {peer.name: os.path.join(folder, f"{i}") for i, peer in enumerate(peers)}
            # The first call loads, compiles and warms up.
            for peer in peers:
                peer.time(stage, files[peer.name])
            for _ in range(options.rounds):
                for peer in peers:
                    times[peer.name].append(peer.time(stage))
            # What is written after an answer is there once the next call is answered.
            first = peers[0].name
            for peer in peers:
                seconds = times[peer.name]
                ratio = statistics.median(times[first]) / statistics.median(seconds)
                apart = difference(files[first], files[peer.name])
                print(
                    f"| {stage} | {peer.name} | {statistics.median(seconds):.3f} | {min(seconds):.3f}"
                    f" | {max(seconds):.3f} | {ratio:.2f} | {apart:.1e} |",
                    flush=True,
                )


main()
