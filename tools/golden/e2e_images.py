"""`e2e_images/`: whole runs of the diffusers pipelines that start from a picture, a mask or another run's latents.

A case is `<case>.json`, a list of runs, each with the model, the fields of sd-pipeline's `Request` and, for the pictures,
names of files in `pictures/`. A later run goes on with the latents of the one before. `<case>.safetensors` holds, per run,
the initial latents, those after every scheduler step, and the picture.
"""

import diffusers
import numpy as np
import torch
from diffusers import (
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverSinglestepScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    TCDScheduler,
)
from PIL import Image, ImageOps

import e2e
from common import ROOT, fresh, generator, relative_error, save_json, save_tensors

SCHEDULERS = e2e.SCHEDULERS | {
    "ddpm": DDPMScheduler,
    "deis": DEISMultistepScheduler,
    "dpm2": KDPM2DiscreteScheduler,
    "dpm2_a": KDPM2AncestralDiscreteScheduler,
    "dpmpp_2s": DPMSolverSinglestepScheduler,
    "lms": LMSDiscreteScheduler,
    "tcd": TCDScheduler,
}
OTHERS = ["ddpm", "deis", "dpm2_a", "dpmpp_2s", "lms", "tcd"]

CAT = {"prompt": "a photo of a cat", "seed": 42, "num_inference_steps": 5}
PHOTO = CAT | {"init_image": "photo.png"}
ODD = CAT | {"init_image": "odd.png"}
HOLE = PHOTO | {"mask_image": "hole.png"}
ODD_HOLE = ODD | {"mask_image": "odd-hole.png"}
SIZED = {"width": 40, "height": 48}
PER_IMAGE = {"num_images": 2, "seed_mode": "per_image", "scheduler": "euler_a"}
BATCH = {"num_images": 2, "seed_mode": "batch", "scheduler": "euler_a"}


def one(model, request):
    """A case of a single run."""
    return [{"model": model, "request": request}]


def each(name, model, request, schedulers):
    """A case for every scheduler."""
    return {f"{name}-{s.replace('_', '-')}": one(model, request | {"scheduler": s}) for s in schedulers}


CASES = {
    # Image-to-image.
    "img2img-sd15-default": one("sd15", PHOTO),
    "img2img-sd15-03": one("sd15", PHOTO | {"strength": 0.3, "num_inference_steps": 10}),
    "img2img-sd15-10": one("sd15", PHOTO | {"strength": 1.0, "scheduler": "euler"}),
    "img2img-sd15-odd": one("sd15", ODD | {"strength": 0.6, "scheduler": "ddim", "eta": 0.5}),
    "img2img-sd15-stretch": one("sd15", ODD | SIZED | {"strength": 0.6}),
    "img2img-sd15-fill": one("sd15", ODD | SIZED | {"resize_mode": "fill", "strength": 0.3}),
    "img2img-sd15-crop": one("sd15", ODD | SIZED | {"resize_mode": "crop", "strength": 0.3}),
    "img2img-sd15-no-guidance": one("sd15", PHOTO | {"guidance_scale": 1.0, "scheduler": "euler"}),
    "img2img-sd15-two": one("sd15", PHOTO | PER_IMAGE),
    "img2img-sd15-two-batch": one("sd15", PHOTO | BATCH),
    **each(
        "img2img-sd15",
        "sd15",
        PHOTO | {"strength": 0.6},
        ["pndm", "ddim", "euler_a", "heun", "dpm2", "dpmpp_2m", "unipc", "lcm"],
    ),
    **each("img2img-sd21", "sd21", ODD | {"strength": 0.6}, OTHERS),
    "img2img-sd21-06": one("sd21", ODD | {"strength": 0.6, "negative_prompt": "blurry"}),
    "img2img-sd21-10": one("sd21", PHOTO | {"strength": 1.0, "scheduler": "euler"}),
    "img2img-sd21-heun": one("sd21", PHOTO | {"strength": 0.3, "scheduler": "heun", "num_inference_steps": 10}),
    "img2img-sdxl-default": one("sdxl", PHOTO | {"num_inference_steps": 10}),
    "img2img-sdxl-06-heun": one("sdxl", ODD | {"strength": 0.6, "scheduler": "heun"}),
    "img2img-sdxl-10-dpmpp-2m": one("sdxl", PHOTO | {"strength": 1.0, "scheduler": "dpmpp_2m"}),
    "img2img-sdxl-negative": one(
        "sdxl",
        PHOTO
        | {"strength": 0.6, "negative_prompt": "blurry", "original_size": [96, 80], "crops_coords_top_left": [8, 24]}
        | {"negative_original_size": [32, 24], "negative_crops_coords_top_left": [1, 2]},
    ),
    "img2img-sdxl-rescale": one("sdxl", PHOTO | {"strength": 0.6, "guidance_rescale": 0.7, "guidance_scale": 9.0}),
    "img2img-sdxl-two": one("sdxl", PHOTO | PER_IMAGE | {"strength": 0.6}),
    "img2img-sdxl-turbo": one(
        "sdxl-turbo", PHOTO | {"strength": 0.5, "guidance_scale": 0.0, "num_inference_steps": 2}
    ),
    "img2img-lcm": one("lcm", PHOTO | {"strength": 0.6, "guidance_scale": 8.5}),
    "img2img-lcm-03": one("lcm", ODD | {"strength": 0.3, "num_images": 2, "seed_mode": "batch"}),
    # Inpainting with the channels of an ordinary UNet.
    "inpaint4-sd15-default": one("sd15", HOLE),
    "inpaint4-sd15-03": one("sd15", HOLE | {"strength": 0.3, "num_inference_steps": 10}),
    "inpaint4-sd15-odd": one("sd15", ODD_HOLE | SIZED | {"strength": 0.6, "scheduler": "euler"}),
    "inpaint4-sd15-black": one("sd15", HOLE | {"mask_polarity": "black_repaints", "scheduler": "euler"}),
    "inpaint4-sd15-transparent": one(
        "sd15", HOLE | {"mask_image": "window.png", "mask_polarity": "transparent_repaints", "scheduler": "ddim"}
    ),
    "inpaint4-sd15-two": one("sd15", HOLE | PER_IMAGE | {"strength": 0.6}),
    "inpaint4-sd15-two-batch": one("sd15", HOLE | BATCH | {"strength": 0.6}),
    "inpaint4-sd15-two-batch-10": one("sd15", HOLE | BATCH),
    "inpaint4-sd15-overlay": one("sd15", HOLE | {"overlay": True, "mask_blur": 3.0, "scheduler": "euler"}),
    "inpaint4-sd15-overlay-odd": one("sd15", ODD_HOLE | {"overlay": True, "mask_blur": 2.0, "scheduler": "euler"}),
    "inpaint4-sd15-masked-only": one(
        "sd15", ODD_HOLE | SIZED | {"padding_mask_crop": 4, "mask_blur": 1.5, "strength": 0.6, "scheduler": "euler"}
    ),
    **each(
        "inpaint4-sd15",
        "sd15",
        HOLE | {"strength": 0.6},
        ["pndm", "ddim", "euler_a", "heun", "dpm2", "dpmpp_2m", "unipc", "lcm"],
    ),
    **each("inpaint4-sd15", "sd15", ODD_HOLE | {"strength": 0.6}, OTHERS),
    "inpaint4-sd21-03": one("sd21", HOLE | {"strength": 0.3, "num_inference_steps": 10}),
    "inpaint4-sd21-06": one("sd21", ODD_HOLE | {"strength": 0.6}),
    "inpaint4-sd21-10-heun": one("sd21", HOLE | {"scheduler": "heun"}),
    "inpaint4-sdxl-default": one("sdxl", HOLE),
    "inpaint4-sdxl-03": one("sdxl", ODD_HOLE | {"strength": 0.3, "num_inference_steps": 10}),
    "inpaint4-sdxl-10-euler-a": one("sdxl", HOLE | {"strength": 1.0, "scheduler": "euler_a", "guidance_rescale": 0.7}),
    "inpaint4-sdxl-06-dpm2": one("sdxl", HOLE | {"strength": 0.6, "scheduler": "dpm2"}),
    "inpaint4-lcm": one("lcm", HOLE | {"strength": 0.6, "guidance_scale": 8.5}),
    "inpaint4-sdxl-stopped": one("sdxl", HOLE | {"strength": 0.6, "denoising_end": 0.7}),
    # Inpainting with a UNet trained for it.
    "inpaint9-sd15-default": one("sd15-inpaint", HOLE),
    "inpaint9-sd15-03": one("sd15-inpaint", HOLE | {"strength": 0.3, "num_inference_steps": 10}),
    "inpaint9-sd15-odd": one("sd15-inpaint", ODD_HOLE | SIZED | {"strength": 0.6, "guidance_scale": 1.0}),
    "inpaint9-sd15-two": one("sd15-inpaint", HOLE | PER_IMAGE | {"strength": 0.6}),
    "inpaint9-sd15-two-batch": one("sd15-inpaint", HOLE | BATCH | {"strength": 0.6}),
    "inpaint9-sd15-two-batch-10": one("sd15-inpaint", HOLE | BATCH),
    "inpaint9-sd15-masked-only": one("sd15-inpaint", ODD_HOLE | {"padding_mask_crop": 0, "scheduler": "euler"}),
    **each("inpaint9-sd15", "sd15-inpaint", HOLE | {"strength": 0.6}, ["euler_a", "heun", "dpmpp_2m", "unipc", "lcm"]),
    "inpaint9-sd2-default": one("sd2-inpaint", HOLE | {"negative_prompt": "blurry"}),
    "inpaint9-sd2-03": one("sd2-inpaint", HOLE | {"strength": 0.3, "num_inference_steps": 10}),
    "inpaint9-sd2-06-euler-a": one("sd2-inpaint", ODD_HOLE | {"strength": 0.6, "scheduler": "euler_a"}),
    "inpaint9-sdxl-default": one("sdxl-inpaint", HOLE),
    "inpaint9-sdxl-10-ddim": one("sdxl-inpaint", ODD_HOLE | {"strength": 1.0, "scheduler": "ddim"}),
    "inpaint9-sdxl-06-heun": one("sdxl-inpaint", HOLE | {"strength": 0.6, "scheduler": "heun"}),
}

for scheduler in ["euler", "heun"]:
    BASE = CAT | {"width": 40, "height": 32, "scheduler": scheduler}
    CASES[f"refiner-{scheduler}"] = [
        {"model": "sdxl", "request": BASE | {"denoising_end": 0.6}},
        {"model": "sdxl-refiner", "request": CAT | {"scheduler": scheduler, "denoising_start": 0.6}},
    ]
CASES["refiner-of-three"] = [
    {"model": "sdxl", "request": CAT | SIZED | {"num_inference_steps": 10, "denoising_end": 0.35}},
    {"model": "sdxl", "request": CAT | {"num_inference_steps": 10, "denoising_start": 0.35, "denoising_end": 0.7}},
    {"model": "sdxl-refiner", "request": CAT | {"num_inference_steps": 10, "denoising_start": 0.7}},
]
CASES["refiner-of-a-picture"] = one(
    "sdxl-refiner",
    PHOTO
    | {"strength": 0.6, "aesthetic_score": 7.0, "negative_aesthetic_score": 1.0, "negative_prompt": "blurry"}
    | {"original_size": [96, 80], "crops_coords_top_left": [8, 24], "negative_crops_coords_top_left": [1, 2]},
)
CASES["refiner-inpaint4"] = one("sdxl-refiner", HOLE | {"strength": 0.6})

SMALL = CAT | {"width": 24, "height": 32}
for upscaler in ["latent_nearest", "latent_bilinear", "latent_bicubic", "lanczos"]:
    CASES[f"hires-{upscaler.replace('_', '-')}"] = one("sd15", SMALL | {"hires": {"scale": 1.5, "upscaler": upscaler}})
CASES |= {
    "hires-two": one("sd15", SMALL | PER_IMAGE | {"hires": {"scale": 1.5, "upscaler": "lanczos", "strength": 0.6}}),
    "hires-two-batch": one("sd15", SMALL | BATCH | {"hires": {"width": 40, "upscaler": "lanczos"}}),
    "hires-heun": one(
        "sd15", SMALL | {"scheduler": "heun", "hires": {"height": 40, "strength": 0.3, "num_inference_steps": 10}}
    ),
    "hires-sdxl": one(
        "sdxl",
        SMALL
        | {"scheduler": "euler_a", "original_size": [96, 80], "crops_coords_top_left": [8, 24]}
        | {"negative_original_size": [48, 24], "negative_target_size": [16, 24]}
        | {"hires": {"width": 40, "height": 40, "upscaler": "latent_bicubic", "strength": 0.5}},
    ),
    "variation": one("sd15", SMALL | {"variation_seed": 7, "variation_strength": 0.3, "scheduler": "euler"}),
    "variation-two": one("sd15", SMALL | PER_IMAGE | {"variation_seed": 7, "variation_strength": 0.8}),
    "variation-two-batch": one("sd15", SMALL | BATCH | {"variation_seed": 7, "variation_strength": 0.5}),
}

# The largest error of the latents against the same run in f64; the tests allow 5e-5.
ROUNDING = 1e-5


def write():
    """Writes the pictures and every case."""
    e2e.restore_text_model()
    fresh(ROOT / "e2e_images")
    write_pictures(ROOT / "e2e_images" / "pictures")
    loaded = {}
    for name, runs in CASES.items():
        families = {run["model"] for run in runs}
        loaded |= {family: e2e.load(family) for family in families - loaded.keys()}
        tensors, exact = chain(loaded, runs), in_f64(loaded, runs)
        check(name, tensors, exact)
        save_json(ROOT / "e2e_images" / f"{name}.json", runs)
        save_tensors(ROOT / "e2e_images" / f"{name}.safetensors", tensors, runs[0]["request"]["seed"])


def write_pictures(folder):
    """Two photos with masks of their sizes: white holes, one with grey in it, and a window of transparency."""
    folder.mkdir()
    for name, (width, height) in {"photo": (48, 40), "odd": (45, 35)}.items():
        x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
        disc = (x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.08
        colours = [0.5 + 0.5 * np.sin(6 * x + 2 * y), y * (1 - 0.6 * disc), np.where(disc, 0.9 - 0.3 * x, 0.2 + 0.5 * x)]
        photo = Image.fromarray((np.stack(colours, -1) * 255).round().astype(np.uint8))
        photo.save(folder / f"{name}.png")
        hole = ((x > 0.3) & (x < 0.72) & (y > 0.22) & (y < 0.7)).astype(np.float64)
        hole[:, : width // 2] *= np.linspace(0.1, 1, height)[:, None]
        mask = Image.fromarray((hole * 255).round().astype(np.uint8))
        mask.save(folder / ("hole.png" if name == "photo" else "odd-hole.png"))
        if name == "photo":
            photo.putalpha(ImageOps.invert(mask))
            photo.save(folder / "window.png")


def chain(loaded, runs):
    """The runs one after the other: tensors named `<run>.<tensor>`."""
    tensors, latents = {}, None
    for index, run in enumerate(runs):
        two_passes = "hires" in run["request"]
        own = (both_passes if two_passes else one_run)(loaded[run["model"]], run["request"], latents)
        latents = own.pop("latents")
        tensors |= {f"{index}.{key}": value for key, value in own.items()}
    return tensors


def one_run(pipeline, request, latents):
    """A run: the latents before and after every step, the last ones, and the picture in 8 bits."""
    own_scheduler = pipeline.scheduler
    if "scheduler" in request:
        pipeline.scheduler = SCHEDULERS[request["scheduler"]].from_config(own_scheduler.config)
    task = for_task(pipeline, request, latents)
    seen = Recorder(task)
    call, pictures = arguments(task, request, latents)
    generators = e2e.generators(request)
    if "variation_seed" in request:
        call["latents"] = varied(task, request, generators)
    images = task(
        **call,
        generator=generators,
        callback_on_step_end=seen.step,
        output_type="pil",
    ).images
    seen.stop()
    pipeline.scheduler = own_scheduler
    if request.get("overlay"):
        images = [overlaid(task, image, *pictures) for image in images]
    images = torch.from_numpy(np.stack([np.array(image) for image in images]))
    return seen.tensors | {"latents": seen.last, "image_u8": images}


def both_passes(pipeline, request, latents):
    """A run whose result is enlarged and changed again, with the generators as they were at first. The latents after the
    first pass's last step are those that the second one starts from."""
    hires = request["hires"]
    request = {key: value for key, value in request.items() if key != "hires"}
    first = one_run(pipeline, request, latents)
    width, height = request["width"], request["height"]
    scale = hires.get("scale", hires.get("width", 0) / width or hires.get("height", 0) / height)
    width, height = hires.get("width", int(width * scale) // 8 * 8), hires.get("height", int(height * scale) // 8 * 8)
    upscaler = hires.get("upscaler", "latent_bilinear")
    if upscaler == "lanczos":
        pictures = [Image.fromarray(image.numpy()) for image in first["image_u8"]]
        enlarged = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in pictures]
    else:
        mode = upscaler.removeprefix("latent_")
        enlarged = torch.nn.functional.interpolate(first["latents"], (height // 8, width // 8), mode=mode)
    again = {key: value for key, value in request.items() if key not in ("width", "height")}
    again |= {"strength": hires.get("strength", 0.7)}
    again |= {key: hires[key] for key in ["num_inference_steps"] if key in hires}
    second = one_run(pipeline, again, enlarged)
    steps = [key for key in first if key.startswith("latents_")]
    first[steps[-1]] = second.pop("initial_latents")
    later = {f"latents_{len(steps) + i:03}": second.pop(f"latents_{i:03}") for i in range(len(second) - 2)}
    return first | later | second


def for_task(pipeline, request, latents):
    """The pipeline of the same family that does what is asked for."""
    xl = "XL" if hasattr(pipeline, "text_encoder_2") else ""
    kind = "Inpaint" if "mask_image" in request else "Img2Img" if "init_image" in request or latents is not None else ""
    consistency = kind == "Img2Img" and pipeline.unet.config.time_cond_proj_dim is not None
    family = "LatentConsistencyModel" if consistency else f"StableDiffusion{xl}"
    task = getattr(diffusers, f"{family}{kind}Pipeline")
    if type(pipeline) is task:
        return pipeline
    options = {}
    if xl:
        options["force_zeros_for_empty_prompt"] = pipeline.config.force_zeros_for_empty_prompt
    if xl and kind:
        options["requires_aesthetics_score"] = pipeline.config.get("requires_aesthetics_score", False)
    if not xl:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    names = ["vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler"]
    components = {name: getattr(pipeline, name) for name in names if hasattr(pipeline, name)}
    made = task(**components, feature_extractor=None, image_encoder=None, **options)
    made.set_progress_bar_config(disable=True)
    return made


OURS = ("seed", "seed_mode", "scheduler", "num_images", "init_image", "mask_image", "mask_polarity", "mask_blur")
OURS += ("overlay", "resize_mode", "variation_seed", "variation_strength")
PAIRS = ("original_size", "crops_coords_top_left", "target_size")


def arguments(pipeline, request, latents):
    """The call for a request, and original and mask as given to it."""
    call = {key: value for key, value in request.items() if key not in OURS}
    call |= {key: tuple(value) for key, value in call.items() if key.removeprefix("negative_") in PAIRS}
    call["num_images_per_prompt"] = request.get("num_images", 1)
    if latents is not None:
        return call | {"image": latents}, None
    if "init_image" not in request:
        return call, None
    photo = opened(request["init_image"])
    width, height = (request.get(key, size // 8 * 8) for key, size in zip(("width", "height"), photo.size))
    if "mask_image" not in request:
        mode = request.get("resize_mode", "default")
        call["image"] = pipeline.image_processor.resize(photo, height, width, mode)
        return {key: value for key, value in call.items() if key not in ("width", "height")}, None
    mask = mask_of(pipeline, request)
    per_image = request.get("seed_mode") == "per_image"
    call |= {"image": [photo] * request["num_images"] if per_image else photo, "mask_image": mask}
    if "padding_mask_crop" not in request:
        call |= {"width": width, "height": height}
    return call, (photo, mask)


def varied(pipeline, request, generators):
    """The noise of the seed turned towards that of the variation seed: slerp along each column of each channel."""
    shape = (pipeline.unet.config.in_channels, request["height"] // 8, request["width"] // 8)
    others = e2e.generators(request | {"seed": request["variation_seed"]})
    if request.get("seed_mode") == "batch":
        drawn = [torch.randn(request["num_images"], *shape, generator=source) for source in (generators, others)]
    else:
        # One seed for all pictures.
        generators[:] = [generator(request["seed"]) for _ in generators]
        drawn = [torch.cat([torch.randn(1, *shape, generator=g) for g in sources]) for sources in (generators, others)]
    low, high = (noise.double() for noise in drawn)
    t = request["variation_strength"]
    cosine = torch.nn.functional.cosine_similarity(low, high, dim=2)[:, :, None]
    assert cosine.mean() < 0.9995
    angle = torch.acos(cosine)
    turned = (torch.sin((1 - t) * angle) * low + torch.sin(t * angle) * high) / torch.sin(angle)
    return turned.float().to(pipeline.unet.dtype)


def opened(name):
    """A picture of `pictures/`."""
    return Image.open(ROOT / "e2e_images" / "pictures" / name)


def mask_of(pipeline, request):
    """The mask, white where the picture is painted anew."""
    mask = opened(request["mask_image"])
    polarity = request.get("mask_polarity", "white_repaints")
    mask = mask.getchannel("A") if polarity == "transparent_repaints" else mask.convert("L")
    mask = mask if polarity == "white_repaints" else ImageOps.invert(mask)
    return pipeline.mask_processor.blur(mask, request["mask_blur"]) if "mask_blur" in request else mask


def overlaid(pipeline, image, photo, mask):
    """The picture at the original's size, laid over the original."""
    return pipeline.image_processor.apply_overlay(mask, photo, image.resize(photo.size, Image.Resampling.LANCZOS))


class Recorder(e2e.Recorder):
    """Listens to a pipeline, but not to its text encoders, which other cases check."""

    def __init__(self, pipeline):
        self.tensors, self.pipeline, self.steps, self.last = {}, pipeline, 0, None
        prepare = pipeline.prepare_latents

        def prepare_latents(*args, **kwargs):
            out = prepare(*args, **kwargs)
            self.tensors["initial_latents"] = out[0] if isinstance(out, tuple) else out
            return out

        pipeline.prepare_latents = prepare_latents

    def step(self, pipeline, index, timestep, tensors):
        self.last = tensors["latents"]
        return super().step(pipeline, index, timestep, tensors)

    def stop(self):
        del self.pipeline.prepare_latents


def in_f64(loaded, runs):
    """The same runs with the networks in f64 and the same (f32) random numbers."""
    randn = torch.randn

    def randn_f32(*args, dtype=None, **kwargs):
        return randn(*args, dtype=torch.float32, **kwargs).to(dtype)

    torch.randn = randn_f32
    families = {run["model"] for run in runs}
    for family in families:
        loaded[family].to(torch.float64)
    tensors = chain(loaded, runs)
    for family in families:
        loaded[family].to(torch.float32)
    torch.randn = randn
    return tensors


def check(name, tensors, exact):
    """Prints how far rounding moves the runs, and asserts that it is little."""
    latents = max(relative_error(tensors[key], exact[key]) for key in tensors if "latents" in key)
    pictures = [key for key in tensors if key.endswith("image_u8")]
    off = max((tensors[key] != exact[key]).float().mean() for key in pictures)
    print(f"  {name}: latents {latents:.1e}, {off:.2%} of u8 differ", flush=True)
    assert latents < ROUNDING and off < 0.0025, f"{name}: ill-conditioned"
