"""Makes the seeds of the fuzz targets: small inputs that reach far. Needs pillow, safetensors and numpy."""

import base64
import io
import json
import re
from pathlib import Path

import numpy
from PIL import Image, PngImagePlugin
from safetensors.numpy import save

SEEDS = Path(__file__).parent / "seeds"
DEMO = Path(__file__).parent.parent / "assets/demo-model"


def write(target: str, name: str, data: bytes | str | dict):
    if isinstance(data, dict):
        data = json.dumps(data)
    if isinstance(data, str):
        data = data.encode()
    (SEEDS / target).mkdir(parents=True, exist_ok=True)
    (SEEDS / target / name).write_bytes(data)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pictures():
    """Every format and every kind of pixel."""
    colours = Image.linear_gradient("L").resize((8, 8))
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 1, Size: 8x8")
    texts.add_itxt("sd", '{"prompt": "\u8d64"}')
    texts.add_text("packed", "x" * 100, zip=True)
    for mode in ["1", "L", "LA", "P", "RGB", "RGBA"]:
        write("pictures", f"png-{mode}", encoded(colours.convert(mode), "PNG"))
    deep = Image.fromarray(numpy.arange(64, dtype=numpy.uint16).reshape(8, 8) * 1000)
    write("pictures", "png-16", encoded(deep, "PNG"))
    write("pictures", "png-texts", encoded(colours, "PNG", pnginfo=texts))
    exif = Image.Exif()
    exif[0x0112] = 6
    write("pictures", "jpeg-turned", encoded(colours.convert("RGB"), "JPEG", exif=exif))
    write("pictures", "jpeg-cmyk", encoded(colours.convert("CMYK"), "JPEG"))
    write("pictures", "jpeg-progressive", encoded(colours.convert("RGB"), "JPEG", progressive=True))
    write("pictures", "webp-lossless", encoded(colours.convert("RGBA"), "WEBP", lossless=True))
    write("pictures", "webp-lossy", encoded(colours.convert("RGB"), "WEBP", quality=50))


def requests():
    """A request of each API with most of its fields."""
    image = base64.b64encode(encoded(Image.new("RGB", (8, 8), "red"), "PNG")).decode()
    mask = base64.b64encode(encoded(Image.linear_gradient("L").resize((8, 8)), "PNG")).decode()
    write("requests", "job", {
        "operation": "image_generation", "prompt": "a cat", "negative_prompt": "dog", "steps": 4, "guidance_scale": 5,
        "seed": 42, "width": 64, "height": 64, "scheduler": "dpmpp_2m_karras", "num_images": 2, "hive_id": "h",
    })
    write("requests", "job-inpaint", {
        "operation": "image_inpaint", "prompt": "a cat", "init_image": image, "mask_image": mask, "strength": 0.5,
        "mask_blur": 2, "padding_mask_crop": 4, "mask_polarity": "black_repaints", "resize_mode": "crop",
    })
    write("requests", "openai", {
        "prompt": "a cat", "n": 2, "size": "64x64", "response_format": "b64_json", "output_format": "jpeg",
        "output_compression": 80, "stream": True, "partial_images": 2, "steps": "4", "guidance_scale": 5, "seed": 42,
        "scheduler": "euler_a", "negative_prompt": "dog", "user": "me", "quality": "auto", "background": "opaque",
    })
    write("requests", "txt2img", {
        "prompt": "a (cat:1.2)", "negative_prompt": "[dog]", "steps": 20, "cfg_scale": 7, "width": 64, "height": 64,
        "seed": -1, "subseed": 3, "subseed_strength": 0.5, "sampler_name": "DPM++ 2M", "scheduler": "Karras",
        "batch_size": 2, "n_iter": 2, "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent (nearest)",
        "override_settings": {"CLIP_stop_at_last_layers": 2}, "alwayson_scripts": {"x": {"args": [False]}}, "eta": 1,
    })
    write("requests", "img2img", {
        "init_images": ["data:image/png;base64," + image], "mask": mask, "denoising_strength": 0.75, "resize_mode": 2,
        "inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 2, "inpainting_mask_invert": 1,
    })


def prompts():
    for number, text in enumerate([
        "a photo of a cat", "(a:1.2) [b] ((c))", "[a:b:0.5] [c|d|e] [:f:2]", r"\(a\) (b:1.5\)", "a BREAK b AND c:0.5",
        "((((", "[a:b:", "(a:-1e9)", "\u8d64\u3044 \U0001f408\u200d\u2b1b", "a" * 300 + " " + "b " * 100,
    ]):
        write("prompts", f"{number}", text)


def configs():
    """The built-in model's files; the first byte says in whose place the rest is."""
    source = (Path(__file__).parent.parent / "assets/demo-model/src/lib.rs").read_text()
    names = re.findall(r'include_bytes!\("../(.*?\.json)"\)', source)
    names = [name for name in names if not name.startswith("tokenizer/")]
    for number, name in enumerate(names):
        write("configs", name.replace("/", "-").removesuffix(".json"), bytes([number]) + (DEMO / name).read_bytes())


def weights():
    tensors = {
        "decoder.conv_out.bias": numpy.zeros(3, numpy.float32),
        "decoder.conv_out.weight": numpy.zeros((3, 2, 1, 1), numpy.float16),
        "quant_conv.bias": numpy.zeros(8, numpy.int64),
    }
    write("weights", "three-tensors", save(tensors, {"format": "pt"}))
    write("weights", "no-tensors", save({}))
    write("weights", "header-of-2-to-the-63", b"\xff" * 7 + b"\x7f" + b"{}")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}).encode()
    write("weights", "overflowing-shape", len(header).to_bytes(8, "little") + header + b"\0" * 4)


if __name__ == "__main__":
    for make in [pictures, requests, prompts, configs, weights]:
        make()
