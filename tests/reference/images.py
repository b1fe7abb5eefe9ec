"""Makes golden/images/: pictures in many forms, and images.json with what Pillow and diffusers make of them and of
computed pictures."""

import hashlib
import io
import json
import struct
import zlib

import numpy
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from PIL import Image

from common import GOLDEN, versions

FOLDER = GOLDEN / "images"


def computed(width, height, channels, seed):
    """Bytes of a linear congruential generator, which the Rust tests compute, too."""
    values, state = bytearray(), seed
    for _ in range(width * height * channels):
        state = (state * 1664525 + 1013904223) % 2**32
        values.append(state >> 24)
    return Image.frombytes("RGB" if channels == 3 else "L", (width, height), bytes(values))


def digest(data):
    return hashlib.sha256(data).hexdigest()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, extra=b""):
    """A PNG that Pillow cannot write: rows of raw bytes, chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def save(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", name.rsplit(".")[-1].replace("jpg", "jpeg")), **options)
    return buffer.getvalue()


def files():
    """Name and bytes of each picture."""
    rgb, grey = computed(7, 5, 3, 1), computed(7, 5, 1, 2)
    alpha = computed(7, 5, 1, 3)
    rgba, la = rgb.copy(), grey.convert("LA")
    rgba.putalpha(alpha)
    la.putalpha(alpha)
    palette = rgb.quantize(13)
    raw = computed(7 * 8, 5, 1, 4).tobytes()
    rows = lambda size: [raw[i * 56 : i * 56 + size] for i in range(5)]
    # Grey values on both sides of 255, where Pillow cuts off.
    value = lambda x, y: (x * 97 + y * 31) * (1 if x % 2 else 40) % 65536
    grey16 = [struct.pack(">7H", *[value(x, y) for x in range(7)]) for y in range(5)]
    yield "rgb.png", save(rgb, "png")
    yield "rgba.png", save(rgba, "png")
    yield "grey.png", save(grey, "png")
    yield "grey-alpha.png", save(la, "png")
    yield "bits.png", save(grey.convert("1"), "png")
    yield "palette.png", save(palette, "png", bits=4)
    yield "palette-transparent.png", save(palette, "png", transparency=3)
    yield "rgb-transparent.png", save(rgb, "png", transparency=rgb.getpixel((2, 2)))
    yield "grey-2-bits.png", png(7, 5, 2, 0, rows(2))
    yield "grey-4-bits.png", png(7, 5, 4, 0, rows(4))
    yield "grey-16.png", png(7, 5, 16, 0, grey16)
    yield "grey-16-transparent.png", png(7, 5, 16, 0, grey16, chunk(b"tRNS", b"\0\x61"))
    yield "grey-alpha-16.png", png(7, 5, 16, 4, rows(28))
    yield "rgb-16.png", png(7, 5, 16, 2, rows(42))
    yield "rgba-16.png", png(7, 5, 16, 6, rows(56))
    yield "gamma.png", png(7, 5, 8, 2, rows(21), chunk(b"gAMA", struct.pack(">I", 100000)))
    yield "lossless.webp", save(rgb, "webp", lossless=True)
    yield "lossless-alpha.webp", save(rgba, "webp", lossless=True, exact=True)
    yield "animated.webp", save(rgb, "webp", lossless=True, save_all=True, append_images=[computed(7, 5, 3, 9)])
    smooth = Image.linear_gradient("L").resize((23, 17))
    colours = Image.merge("RGB", [smooth, smooth.transpose(Image.Transpose.ROTATE_180), smooth.point(lambda v: 128)])
    yield "grey.jpg", save(smooth, "jpg", quality=90)
    yield "444.jpg", save(colours, "jpg", quality=90, subsampling=0)
    yield "420.jpg", save(colours, "jpg", quality=90, subsampling=2)
    yield "progressive.jpg", save(colours, "jpg", quality=90, progressive=True)
    yield "cmyk.jpg", save(colours.convert("CMYK"), "jpg", quality=90)
    yield "lossy.webp", save(colours, "webp", quality=90)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"turned-{orientation}.png", save(rgb, "png", exif=exif)
    for name in ["jpg", "webp"]:
        exif = Image.Exif()
        exif[0x0112] = 6
        yield f"turned.{name}", save(colours, name, quality=90, exif=exif)


def resized():
    """Pillow's Lanczos filter: size, new size, channels, the SHA-256 of the pixels, and these if they are few."""
    for (width, height), to in [
        ((3, 3), (2, 2)),
        ((2, 2), (3, 3)),
        ((1, 1), (4, 5)),
        ((5, 1), (2, 7)),
        ((1000, 700), (512, 512)),
        ((512, 512), (1000, 700)),
        ((200, 100), (200, 50)),
        ((100, 200), (50, 200)),
        ((64, 48), (64, 48)),
        # Which pass is first: the vertical one if the height loses more than twice as many pixels as the width.
        ((61, 90), (72, 40)),
        ((100, 150), (80, 110)),
        ((100, 150), (80, 109)),
        ((100, 150), (101, 151)),
        ((700, 1100), (512, 640)),
    ]:
        for channels in [1, 3]:
            data = computed(width, height, channels, 5).resize(to, Image.Resampling.LANCZOS).tobytes()
            row = {"size": [width, height], "to": to, "channels": channels, "sha256": digest(data)}
            yield row | ({"pixels": data.hex()} if len(data) <= 60 else {})


def mask_of(width, height):
    """A grey mask with a white and a grey part, as RGB."""
    noise = numpy.asarray(computed(width, height, 1, 6)).copy()
    mask = numpy.zeros((height, width), "uint8")
    columns = slice(width // 4, width // 2)
    mask[height // 3 : height // 2, columns] = 255
    grey = slice(height // 2, height * 2 // 3), columns
    mask[grey] = noise[grey]
    return Image.fromarray(mask).convert("RGB")


def preprocessed():
    """What VaeImageProcessor makes of a picture and a mask."""
    images = VaeImageProcessor(vae_scale_factor=8)
    controls = VaeImageProcessor(vae_scale_factor=8, do_convert_rgb=True, do_normalize=False)
    masks = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    for (width, height), to in [((70, 53), None), ((64, 48), None), ((61, 90), (72, 40))]:
        image, mask = computed(width, height, 3, 7), mask_of(width, height)
        pixels = images.preprocess(image, *(to and (to[1], to[0]) or (None, None)))
        height_, width_ = pixels.shape[2:]
        control = controls.preprocess(image, height_, width_)
        binary = masks.preprocess(mask, height_, width_)
        latents = torch.nn.functional.interpolate(binary, size=(height_ // 8, width_ // 8))
        masked = pixels * (binary < 0.5)
        last = lambda tensor: digest(tensor[0].permute(1, 2, 0).contiguous().numpy().tobytes())
        yield {"size": [width, height], "to": [width_, height_], "pixels": last(pixels), "control": last(control),
               "mask": digest(binary.to(torch.uint8).numpy().tobytes()), "latents": last(latents),
               "repainted_latents": int(latents.sum()), "masked": last(masked + 0.0)}


def pasted():
    """What inpainting keeps, over the picture that was drawn."""
    processor = VaeImageProcessor(vae_scale_factor=8)
    for width, height in [(120, 90), (90, 120), (100, 100)]:
        image, drawn = computed(width, height, 3, 8), computed(width, height, 3, 11)
        over = processor.apply_overlay(mask_of(width, height), image, drawn)
        yield {"size": [width, height], "over": digest(over.tobytes())}


def main():
    FOLDER.mkdir(exist_ok=True)
    read = {}
    for name, data in files():
        (FOLDER / name).write_bytes(data)
        image = load_image(str(FOLDER / name))
        read[name] = {"size": image.size, "rgb": image.tobytes().hex()}
    grey = {"luma": digest(computed(64, 64, 3, 12).convert("L").tobytes())}
    data = {"versions": versions() | {"pillow": PIL.__version__}, "read": read, "resized": list(resized()),
            "preprocessed": list(preprocessed()), "pasted": list(pasted())} | grey
    (FOLDER / "images.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
