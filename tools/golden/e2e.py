"""`e2e/`: whole runs of the diffusers pipelines on the tiny models, with the latents after every scheduler step."""

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from transformers import CLIPTextModel

from common import ROOT, fresh, generator, relative_error, save_json, save_tensors

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
}

UNICODE = "¡un café à Zürich! 猫と犬 🐱 it's 3 o'clock"
LONG = "a highly detailed painting of a castle on a hill above a river, " * 6
DEFAULT = {"prompt": "a photo of a cat", "seed": 42, "num_inference_steps": 4}
CAT = DEFAULT | {"width": 32, "height": 40}

# name -> (family, request). A request has the fields of sd-pipeline's `Request`; the model has defaults for the rest.
CASES = {
    # v1.5: schedulers, guidance, text.
    "sd15-default": ("sd15", DEFAULT),
    "sd15-pndm-7": ("sd15", CAT | {"num_inference_steps": 7, "negative_prompt": "blurry", "width": 72, "height": 56}),
    "sd15-ddim": ("sd15", CAT | {"scheduler": "ddim", "negative_prompt": "", "width": 88, "height": 24, "seed": 0}),
    "sd15-ddim-20": ("sd15", CAT | {"scheduler": "ddim", "num_inference_steps": 20, "negative_prompt": "a dog!"}),
    "sd15-ddim-eta": ("sd15", CAT | {"scheduler": "ddim", "eta": 0.5, "num_inference_steps": 7, "seed": 2**32 + 5}),
    "sd15-euler": ("sd15", CAT | {"scheduler": "euler", "guidance_scale": 3.5, "width": 56, "height": 72}),
    "sd15-euler-a": ("sd15", CAT | {"scheduler": "euler_a", "num_inference_steps": 7}),
    "sd15-heun": ("sd15", CAT | {"scheduler": "heun"}),
    "sd15-dpmpp-2m": ("sd15", CAT | {"scheduler": "dpmpp_2m", "num_inference_steps": 7}),
    "sd15-unipc": ("sd15", CAT | {"scheduler": "unipc", "num_inference_steps": 7}),
    "sd15-no-guidance": ("sd15", CAT | {"guidance_scale": 1.0, "negative_prompt": "ignored"}),
    "sd15-rescale": ("sd15", CAT | {"guidance_rescale": 0.7, "scheduler": "ddim"}),
    "sd15-clip-skip-1": ("sd15", CAT | {"clip_skip": 1, "negative_prompt": "blurry"}),
    "sd15-clip-skip-2": ("sd15", CAT | {"clip_skip": 2, "scheduler": "euler"}),
    "sd15-unicode": ("sd15", CAT | {"prompt": UNICODE, "negative_prompt": "naïve 文字"}),
    "sd15-long": ("sd15", CAT | {"prompt": LONG, "negative_prompt": LONG[::-1]}),
    "sd15-empty": ("sd15", CAT | {"prompt": "", "guidance_scale": 2.0}),
    "sd15-one-step": ("sd15", CAT | {"num_inference_steps": 1, "scheduler": "ddim"}),
    # One linspace step is timestep 0, so the initial noise is tiny.
    "sd15-one-step-euler": ("sd15", CAT | {"num_inference_steps": 1, "scheduler": "euler"}),
    # v1.5: several images, with and without noise drawn while sampling.
    "sd15-two-images": ("sd15", CAT | {"num_images": 2, "seed_mode": "per_image"}),
    "sd15-two-images-euler-a": ("sd15", CAT | {"num_images": 2, "seed_mode": "per_image", "scheduler": "euler_a"}),
    "sd15-two-images-batch-euler-a": ("sd15", CAT | {"num_images": 2, "seed_mode": "batch", "scheduler": "euler_a"}),
    "sd15-three-images-batch-eta": (
        "sd15",
        CAT | {"num_images": 3, "seed_mode": "batch", "scheduler": "ddim", "eta": 1.0},
    ),
    # The built-in model, whose pictures are flat colours.
    "builtin-default": (
        "builtin",
        {"prompt": "a small blue star above a yellow heart on a green background", "seed": 42}
        | {"num_inference_steps": 25, "guidance_scale": 5.0},
    ),
    # v2.1: v-prediction, `!` as padding.
    "sd21-default": ("sd21", DEFAULT | {"prompt": "hello! a cat!", "negative_prompt": "bad!"}),
    "sd21-odd": ("sd21", CAT | {"num_inference_steps": 7, "width": 88, "height": 24}),
    "sd21-euler": ("sd21", CAT | {"scheduler": "euler", "clip_skip": 1}),
    "sd21-euler-a": ("sd21", CAT | {"scheduler": "euler_a"}),
    "sd21-pndm": ("sd21", CAT | {"scheduler": "pndm"}),
    # XL.
    "sdxl-default": ("sdxl", DEFAULT),
    "sdxl-empty-negative": ("sdxl", CAT | {"negative_prompt": "", "num_inference_steps": 7}),
    "sdxl-two-prompts": (
        "sdxl",
        CAT
        | {
            "prompt_2": "oil on canvas!",
            "negative_prompt": "blurry",
            "negative_prompt_2": "photo!",
            "width": 72,
            "height": 56,
        },
    ),
    "sdxl-sizes": (
        "sdxl",
        CAT
        | {
            "original_size": [96, 80],
            "crops_coords_top_left": [8, 24],
            "target_size": [128, 112],
            "width": 88,
            "height": 24,
        },
    ),
    "sdxl-rescale": ("sdxl", CAT | {"guidance_rescale": 0.7, "guidance_scale": 9.0}),
    "sdxl-clip-skip": ("sdxl", CAT | {"clip_skip": 1, "negative_prompt": "blurry"}),
    "sdxl-ddim": ("sdxl", CAT | {"scheduler": "ddim", "prompt": UNICODE}),
    "sdxl-two-images": ("sdxl", CAT | {"num_images": 2, "seed_mode": "per_image", "scheduler": "euler_a"}),
    # Distilled models.
    "sdxl-turbo-1": ("sdxl-turbo", CAT | {"guidance_scale": 0.0, "num_inference_steps": 1}),
    "sdxl-turbo-4": ("sdxl-turbo", CAT | {"guidance_scale": 0.0, "width": 40, "height": 24}),
    "sd-turbo-1": ("sd-turbo", CAT | {"guidance_scale": 0.0, "num_inference_steps": 1}),
    "sd-turbo-4": ("sd-turbo", CAT | {"guidance_scale": 0.0}),
    "lcm-default": ("lcm", CAT | {"guidance_scale": 8.5}),
    "lcm-two-images": (
        "lcm",
        CAT | {"guidance_scale": 1.5, "num_images": 2, "seed_mode": "batch", "num_inference_steps": 3},
    ),
}

BUILTIN = ROOT.parents[1] / "assets" / "demo-model"

# The largest error of the latents against the same run in f64; the tests allow 5e-5.
ROUNDING = 6e-6


def write():
    """Writes `<case>.json` and `<case>.safetensors`."""
    restore_text_model()
    fresh(ROOT / "e2e")
    pipelines = {family: load(family) for family, _ in CASES.values()}
    for name, (family, request) in CASES.items():
        tensors = run(pipelines[family], request)
        check(name, tensors, run_f64(pipelines[family], request))
        save_json(ROOT / "e2e" / f"{name}.json", {"model": family, "request": request})
        save_tensors(ROOT / "e2e" / f"{name}.safetensors", tensors, request["seed"])


def restore_text_model():
    """diffusers asks for `text_encoder.text_model` under clip_skip; transformers 5.6 removed it from this class."""
    CLIPTextModel.text_model = property(lambda encoder: encoder)


def load(family):
    """The pipeline that `model_index.json` names."""
    folder = BUILTIN if family == "builtin" else ROOT / "models" / family
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline, request):
    """One run; returns the embeddings, the latents before and after every scheduler step, and the pictures."""
    own_scheduler = pipeline.scheduler
    if "scheduler" in request:
        pipeline.scheduler = SCHEDULERS[request["scheduler"]].from_config(own_scheduler.config)
    seen = Recorder(pipeline)
    image = pipeline(
        **arguments(request),
        generator=generators(request),
        callback_on_step_end=seen.step,
        output_type="pt",
    ).images
    seen.stop()
    pipeline.scheduler = own_scheduler
    u8 = (image.permute(0, 2, 3, 1).float().cpu().numpy() * 255).round().astype(np.uint8)
    return seen.tensors | {"image": image, "image_u8": torch.from_numpy(u8)}


def arguments(request):
    """The pipeline call for a request, its random numbers excepted."""
    ours = ("seed", "seed_mode", "scheduler", "num_images")
    sizes = ("original_size", "crops_coords_top_left", "target_size")
    call = {key: tuple(value) if key in sizes else value for key, value in request.items() if key not in ours}
    return call | {"num_images_per_prompt": request.get("num_images", 1)}


def generators(request):
    """One generator, or one an image with consecutive seeds."""
    if request.get("seed_mode") == "batch":
        return generator(request["seed"])
    return [generator(request["seed"] + i) for i in range(request.get("num_images", 1))]


class Recorder:
    """Listens to a pipeline: what `encode_prompt` and `prepare_latents` return, and the latents of every step."""

    def __init__(self, pipeline):
        self.tensors, self.pipeline, self.steps = {}, pipeline, 0
        encode, prepare = pipeline.encode_prompt, pipeline.prepare_latents

        def encode_prompt(*args, **kwargs):
            out = encode(*args, **kwargs)
            names = ["prompt_embeds", "negative_prompt_embeds", "pooled", "negative_pooled"]
            # One row stands for all images of the prompt.
            self.tensors |= {key: value[:1] for key, value in zip(names, out) if value is not None}
            return out

        def prepare_latents(*args, **kwargs):
            self.tensors["initial_latents"] = prepare(*args, **kwargs)
            return self.tensors["initial_latents"]

        pipeline.encode_prompt, pipeline.prepare_latents = encode_prompt, prepare_latents

    def step(self, pipeline, index, timestep, tensors):
        """The `callback_on_step_end` of the pipelines."""
        self.tensors[f"latents_{self.steps:03}"] = tensors["latents"].clone()
        self.steps += 1
        return {}

    def stop(self):
        """Restores the pipeline's methods."""
        del self.pipeline.encode_prompt, self.pipeline.prepare_latents


def run_f64(pipeline, request):
    """The same run with the networks in f64 and the same (f32) random numbers."""
    randn = torch.randn

    def randn_f32(*args, dtype=None, **kwargs):
        return randn(*args, dtype=torch.float32, **kwargs).to(dtype)

    torch.randn = randn_f32
    pipeline.to(torch.float64)
    tensors = run(pipeline, request)
    pipeline.to(torch.float32)
    torch.randn = randn
    return tensors


def check(name, tensors, exact):
    """Prints how far rounding moves the run, and asserts that it is little and that the picture is a picture."""
    errors = {key: relative_error(tensors[key], exact[key]) for key in tensors if exact[key].abs().max() > 0}
    latents = max(error for key, error in errors.items() if "latents" in key)
    image = tensors["image"]
    clipped = ((image == 0) | (image == 1)).float().mean()
    size = max(value.abs().max() for key, value in tensors.items() if "latents" in key)
    off = (tensors["image_u8"] != exact["image_u8"]).float().mean()
    print(
        f"  {name}: latents {latents:.1e} (up to {size:.0f}), image {errors['image']:.1e}, "
        f"{off:.2%} of u8 differ, {clipped:.0%} clipped",
        flush=True,
    )
    assert latents < ROUNDING and off < 0.0025, f"{name}: ill-conditioned"
    assert clipped < 0.3 or name.startswith("builtin"), f"{name}: no picture"
