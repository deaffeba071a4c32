"""What Pillow and diffusers' VaeImageProcessor do to pictures: resizing, modes, blur, masks, overlay, files to decode."""

import io
import struct
import zlib

import common
import numpy
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageFilter, ImageOps

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SIZES = [(37, 31), (13, 9), (24, 30), (29, 37), (5, 60), (1, 1)]
MODES = {"stretch": "default", "fill": "fill", "crop": "crop"}
RADII = [0.1, 0.5, 1, 1.5, 2, 2.7, 4, 6.3, 10, 16, 33]
ORIENTATION = 0x0112


def picture(name, width, height, channels=3):
    """Waves under noise: smooth parts, sharp edges and both ends of the range."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(x / (3 + c) + c) + torch.cos(y / (4 - c) - c) for c in range(channels)]
    levels = 128 + 70 * torch.stack(waves, -1) + 25 * common.randn(name, height, width, channels)
    levels[height // 3 : height // 2, width // 4 : width // 2] = 255
    return image(levels)


def noise(name, width, height, channels=3):
    return image(255 * torch.rand(height, width, channels, generator=common.generator(name)))


def image(levels):
    levels = levels.clamp(0, 255).round().to(torch.uint8).numpy()
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def tensor(image):
    """[height, width, channels]"""
    return torch.from_numpy(numpy.array(image)).reshape(image.height, image.width, -1)


def resizes():
    pictures = {
        "waves": picture("waves", 48, 37),
        "noise": noise("noise", 16, 23),
        "grey": noise("grey", 29, 20, 1),
        "column": noise("column", 1, 7, 1),
        "row": noise("row", 5, 1, 1),
        "dot": noise("dot", 1, 1, 1),
    }
    tensors = {name: tensor(picture) for name, picture in pictures.items()}
    for name, source in pictures.items():
        for filter, resample in FILTERS.items():
            for width, height in SIZES:
                resized = source.resize((width, height), resample=resample)
                tensors[f"{name}.{filter}.{width}x{height}"] = tensor(resized)
    return tensors


def fits():
    pictures = {"wide": picture("wide", 41, 23), "high": picture("high", 19, 33), "mask": noise("mask", 30, 20, 1)}
    processor = VaeImageProcessor()
    tensors = {}
    for name, source in pictures.items():
        tensors[name] = tensor(source)
        for mode, theirs in MODES.items():
            for width, height in [(24, 24), (16, 40), (37, 16), (41, 23), (30, 21)]:
                # Masks in RGB, as `load_image` gives them: two of the modes make nothing else.
                fitted = processor.resize(source.convert("RGB"), height, width, theirs).convert(source.mode)
                tensors[f"{name}.{mode}.{width}x{height}"] = tensor(fitted)
    return tensors


def masks():
    colours = noise("colours", 64, 32)
    luma = colours.convert("L")
    binarize = VaeImageProcessor(vae_scale_factor=1, do_resize=False, do_normalize=False, do_binarize=True)
    binary = binarize.preprocess(luma)[0, 0] * 255
    return {"colours": tensor(colours), "luma": tensor(luma), "binary": binary.to(torch.uint8)[..., None]}


def blurs():
    shape = Image.new("L", (40, 33))
    shape.paste(255, (9, 6, 25, 21))
    shape.paste(130, (30, 0, 40, 5))
    sources = {"shape": shape, "noise": noise("blur", 21, 13, 1), "thin": noise("thin", 1, 9, 1)}
    tensors = {name: tensor(source) for name, source in sources.items()}
    for name, source in sources.items():
        for radius in RADII:
            tensors[f"{name}.{radius}"] = tensor(source.filter(ImageFilter.GaussianBlur(radius)))
    return tensors


def crop_regions():
    draw = common.generator("crop regions")

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=draw))

    cases = []
    for _ in range(200):
        columns, rows = number(1, 96), number(1, 96)
        left, top = number(0, columns - 1), number(0, rows - 1)
        box = (left, top, number(left + 1, columns), number(top + 1, rows))
        mask = Image.new("L", (columns, rows))
        mask.paste(number(1, 255), box)
        width, height, padding = number(1, 16) * 8, number(1, 16) * 8, number(0, 3) * number(0, 12)
        region = VaeImageProcessor.get_crop_region(mask, width, height, padding)
        cases.append(
            {
                "mask": [columns, rows],
                "white": box,
                "width": width,
                "height": height,
                "padding": padding,
                "region": region,
            }
        )
    return cases


def overlays():
    processor = VaeImageProcessor()
    # Every opacity for each of 10 x 3 pairs of colours, black and white among them.
    original, repainted = noise("original", 10, 256), noise("repainted", 10, 256)
    original.paste((0, 255, 0), (0, 0, 1, 256))
    repainted.paste((255, 0, 0), (0, 0, 1, 256))
    opacities = Image.fromarray(numpy.arange(256, dtype=numpy.uint8)[:, None].repeat(10, 1))
    small = Image.new("L", (30, 26))
    small.paste(255, (9, 6, 20, 16))
    small = small.filter(ImageFilter.GaussianBlur(1))
    photo, region, part = picture("photo", 30, 26), (5, 2, 25, 22), picture("part", 16, 16)
    return {
        "original": tensor(original),
        "repainted": tensor(repainted),
        "mask": tensor(opacities),
        "whole": tensor(processor.apply_overlay(opacities, original, repainted)),
        "region.original": tensor(photo),
        "region.repainted": tensor(part),
        "region.mask": tensor(small),
        "region.whole": tensor(processor.apply_overlay(small, photo, part, region)),
    }


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(kind, depth, rows, *chunks):
    """A PNG of colour type `kind`; Pillow writes no 16-bit colours. `rows` are packed samples."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    width = len(rows[0]) * 8 // (depth * channels)
    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    chunks = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


def oriented(orientation, endian="<"):
    exif = Image.Exif()
    exif.endian = endian
    exif[ORIENTATION] = orientation
    return exif


def files():
    colours, grey, arrow = picture("colours", 24, 17), picture("levels", 24, 17, 1), picture("arrow", 5, 3)
    alpha = noise("alpha", 24, 17, 1)
    transparent = Image.merge("RGBA", [*colours.split(), alpha])
    frames = [picture(f"frame {i}", 24, 17) for i in range(3)]
    # Flat, so that decoders of different arithmetic agree: 16 x 16 blocks of one colour.
    blocks = noise("blocks", 3, 2).resize((48, 32), Image.Resampling.NEAREST)

    def bits(depth, width=16):
        rows = noise(f"{depth} bits", width * depth // 8, 9, 1)
        return [bytes(row) for row in numpy.array(rows)]

    palette = (b"PLTE", noise("palette", 16, 1).tobytes())
    written = {
        "rgb.png": encoded(colours, "png"),
        "rgba.png": encoded(transparent, "png"),
        "grey.png": encoded(grey, "png"),
        "grey_alpha.png": encoded(Image.merge("LA", [grey, alpha]), "png"),
        "grey_1.png": png(0, 1, bits(1)),
        "grey_2.png": png(0, 2, bits(2)),
        "grey_4.png": png(0, 4, bits(4)),
        "grey_16.png": png(0, 16, bits(16)),
        "grey_alpha_16.png": png(4, 16, bits(32)),
        "grey_key.png": png(0, 8, bits(8), (b"tRNS", b"\0" + bits(8)[0][:1])),
        "rgb_16.png": png(2, 16, bits(48)),
        "rgba_16.png": png(6, 16, bits(64)),
        "rgb_key.png": png(2, 8, bits(24), (b"tRNS", bytes(b for v in bits(24)[0][:3] for b in (0, v)))),
        "palette.png": encoded(colours.quantize(200), "png"),
        "palette_4.png": png(3, 4, bits(4), palette),
        "palette_alpha.png": png(3, 4, bits(4), palette, (b"tRNS", bytes([0, 255, 90, 7]))),
        "animated.png": encoded(frames[0], "png", save_all=True, append_images=frames[1:]),
        "rgb.jpg": encoded(colours, "jpeg", quality=95, subsampling=0),
        "subsampled.jpg": encoded(colours, "jpeg", quality=90, subsampling=2),
        "progressive.jpg": encoded(colours, "jpeg", quality=90, progressive=True),
        "grey.jpg": encoded(grey, "jpeg", quality=90),
        "cmyk.jpg": encoded(blocks.convert("CMYK"), "jpeg", quality=95),
        "oriented.jpg": encoded(blocks, "jpeg", quality=95, exif=oriented(6, ">")),
        "lossless.webp": encoded(colours, "webp", lossless=True),
        "lossy.webp": encoded(colours, "webp", quality=80),
        "alpha.webp": encoded(transparent, "webp", lossless=True, exact=True),
        "oriented.webp": encoded(arrow, "webp", lossless=True, exif=oriented(8)),
        "animated.webp": encoded(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True),
    }
    for orientation in range(1, 9):
        written[f"oriented_{orientation}.png"] = encoded(arrow, "png", exif=oriented(orientation))

    tensors = {}
    for name, data in written.items():
        opened = Image.open(io.BytesIO(data))
        turned = ImageOps.exif_transpose(opened)
        if opened.mode == "I;16":
            # Pillow would clip these to 255. The high byte is what it keeps of 16-bit colours.
            turned = Image.fromarray((numpy.array(turned) >> 8).astype(numpy.uint8))
        tensors[f"{name}.rgb"] = tensor(turned.convert("RGB"))
        if opened.has_transparency_data:
            tensors[f"{name}.alpha"] = tensor(turned.convert("RGBA").getchannel("A"))
    return written, tensors


def write():
    folder = common.fresh(common.ROOT / "images")
    for name, tensors in {
        "resize": resizes(),
        "fit": fits(),
        "mask": masks(),
        "blur": blurs(),
        "overlay": overlays(),
    }.items():
        common.save_tensors(folder / f"{name}.safetensors", tensors, "crc32 of the name")
    common.save_json_lines(folder / "crop_region.json", crop_regions())
    written, tensors = files()
    common.save_tensors(folder / "files.safetensors", tensors, "crc32 of the name")
    for name, data in written.items():
        (folder / name).write_bytes(data)
