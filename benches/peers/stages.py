"""Times the stages of a Stable Diffusion model in another program, by the protocol of the example `time_stages`.

usage: stages.py torch|openvino FOLDER f32|bf16

Every line of standard input is a stage, its batch and the side of its latents, and perhaps a file to write the result to;
every answer is a line of JSON with the seconds it took.
"""

import json
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

THREADS = int(os.environ["OMP_NUM_THREADS"])


def pattern(*shape, factor=7919):
    """Numbers between -1.74 and 1.74 that any language makes alike."""
    count = 1
    for side in shape:
        count *= side
    i = torch.arange(count, dtype=torch.int64)
    return (((i * factor % 2003).double() / 2003 - 0.5) * 3.4641).float().reshape(shape)


def inputs(stage, batch, side, model):
    if stage == "unet":
        width = model.config.cross_attention_dim
        return pattern(batch, 4, side, side), pattern(batch, 77, width, factor=104729)
    if stage == "vae_decode":
        return (pattern(batch, 4, side, side),)
    if stage == "vae_encode":
        return (pattern(batch, 3, 8 * side, 8 * side),)
    return (((31 * torch.arange(77 * batch) + 7) % 49000).reshape(batch, 77),)


class Stage(torch.nn.Module):
    """One stage as a function of its inputs, as the Rust library defines it: latents are scaled."""

    def __init__(self, name, model):
        super().__init__()
        self.name, self.model = name, model

    def forward(self, x, text=None):
        if self.name == "unet":
            return self.model(x, torch.tensor(500), text, return_dict=False)[0]
        if self.name == "vae_decode":
            return self.model.decode(x / self.model.config.scaling_factor, return_dict=False)[0]
        if self.name == "vae_encode":
            moments = self.model.encode(x, return_dict=False)[0]
            return moments.mean * self.model.config.scaling_factor
        return self.model(x).last_hidden_state


def load(stage, folder):
    kind, part = {
        "unet": (UNet2DConditionModel, "unet"),
        "clip": (CLIPTextModel, "text_encoder"),
    }.get(stage, (AutoencoderKL, "vae"))
    return kind.from_pretrained(os.path.join(folder, part), torch_dtype=torch.float32).eval()


class Torch:
    def __init__(self, dtype):
        torch.set_num_threads(THREADS)
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]

    def prepare(self, stage, model, values):
        module = Stage(stage, model.to(self.dtype))
        cast = [v.to(self.dtype) if v.is_floating_point() else v for v in values]
        return lambda: module(*cast).float()


class OpenVino:
    def __init__(self, dtype):
        import openvino

        self.openvino = openvino
        self.core = openvino.Core()
        self.settings = {
            "INFERENCE_PRECISION_HINT": dtype,
            "INFERENCE_NUM_THREADS": THREADS,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }

    def prepare(self, stage, model, values):
        if stage == "clip":
            model.set_attn_implementation("eager")
        converted = self.openvino.convert_model(Stage(stage, model), example_input=tuple(values))
        converted.reshape({i: list(v.shape) for i, v in zip(converted.inputs, values)})
        compiled = self.core.compile_model(converted, "CPU", self.settings)
        del converted
        request, arrays = compiled.create_infer_request(), [v.numpy() for v in values]
        return lambda: torch.from_numpy(next(iter(request.infer(arrays).values())))


def main():
    peer, folder, dtype = sys.argv[1:]
    peer = {"torch": Torch, "openvino": OpenVino}[peer](dtype)
    print(json.dumps({"load": 0}), flush=True)
    known, run = None, None
    with torch.inference_mode():
        for line in sys.stdin:
            stage, batch, side, *file = line.split()
            if known != (stage, batch, side):
                run = None
                model = load(stage, folder)
                run = peer.prepare(stage, model, inputs(stage, int(batch), int(side), model))
                del model
                known = (stage, batch, side)
            start, cpu = time.perf_counter(), time.process_time()
            result = run()
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            print(json.dumps({"seconds": seconds, "cpu": cpu}), flush=True)
            if file:
                save_file({"result": result.contiguous().clone()}, file[0])


main()
