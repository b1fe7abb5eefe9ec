"""tests/golden/img2img.safetensors: what diffusers draws from a picture, with and without a mask, with the tiny pipelines.

The picture and the mask are made by a formula that `tests/models/img2img.rs` has too. The inpainting model is tiny-sd1
with a UNet of nine input channels, whose first convolution comes from `formula.py`.
"""

import diffusers
import numpy
import torch
from diffusers import (AutoencoderKL, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline,
                       StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, UNet2DConditionModel)
from PIL import Image
from transformers import CLIPTokenizer

import formula
import tiny_sdxl
from common import GOLDEN, versions, write_tensors
from pipelines import load
from schedulers import SCHEDULERS

PROMPT, SEED, STEPS, GUIDANCE = "a photo of the red fox", 5, 10, 3.0


def picture(width, height):
    y, x, c = numpy.mgrid[:height, :width, :3]
    return Image.fromarray(((x * 5 + y * 3 + c * 80 + x * y // 7) % 256).astype("uint8"))


def mask(width, height):
    """White on the right, with an edge that is not one of the latents' cells, and grey values around the threshold."""
    y, x = numpy.mgrid[:height, :width]
    values = numpy.where(x > width // 2 + 3, 255, 0)
    values[height // 2:, :9] = 127
    values[height // 2:, 9:19] = 128
    return Image.fromarray(values.astype("uint8"))


def rows():
    """Name -> model and options, with the names of sdshard's options."""
    solvers = [name for name in SCHEDULERS if "," not in name and "-karras" not in name and not name.endswith(
        ("-exponential", "-beta"))]
    from_picture = {"model": "tiny-sd1", "size": [75, 53], "strength": 0.6}
    all_rows = {f"img2img {solver}": from_picture | {"scheduler": solver} for solver in solvers}
    all_rows |= {
        "img2img karras": from_picture | {"scheduler": "dpm++2m-karras"},
        "img2img all steps": from_picture | {"scheduler": "euler-ancestral", "strength": 1.0},
        "img2img default": from_picture | {"scheduler": "pndm", "strength": 0.8},
        "img2img v": from_picture | {"model": "tiny-sd2", "scheduler": "ddim"},
        "img2img sdxl": from_picture | {"model": "tiny-sdxl", "scheduler": "euler-ancestral"},
        "img2img sdxl default": from_picture | {"model": "tiny-sdxl", "scheduler": "euler", "strength": 0.3},
    }
    masked = {"model": "tiny-sd1", "size": [72, 48], "mask": True, "strength": 0.6}
    for solver in ("pndm", "euler-ancestral", "heun", "dpm++2m-sde", "dpm++2s", "unipc", "lcm"):
        all_rows[f"masked {solver}"] = masked | {"scheduler": solver}
    all_rows |= {
        "masked all steps": masked | {"scheduler": "euler-ancestral", "strength": 1.0},
        "masked sdxl default": masked | {"model": "tiny-sdxl", "scheduler": "euler", "strength": 0.9999},
        "inpaint": masked | {"model": "inpaint", "scheduler": "euler-ancestral"},
        "inpaint all steps": masked | {"model": "inpaint", "scheduler": "euler-ancestral", "strength": 1.0},
        "inpaint pndm": masked | {"model": "inpaint", "scheduler": "pndm"},
        "inpaint unguided": masked | {"model": "inpaint", "scheduler": "ddim", "guidance_scale": 1.0},
    }
    return all_rows


def sdxl():
    folder = GOLDEN / tiny_sdxl.NAME
    scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    tokenizers = {name: CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")}
    return dict(tiny_sdxl.networks(), **tokenizers, scheduler=scheduler)


def pipelines():
    """Model -> class of pipeline -> pipeline."""
    made = {}
    for name in ("tiny-sd1", "tiny-sd2", "inpaint"):
        parts = dict(load(GOLDEN / ("tiny-sd1" if name == "inpaint" else name)).components)
        if name == "inpaint":
            unet = UNet2DConditionModel.from_config(dict(parts["unet"].config, in_channels=9)).eval()
            state = dict(parts["unet"].state_dict())
            state["conv_in.weight"] = formula.weight("unet", "conv_in.weight", unet.conv_in.weight.shape)
            unet.load_state_dict(state)
            parts["unet"] = unet
        parts["requires_safety_checker"] = False
        made[name] = {False: StableDiffusionImg2ImgPipeline(**parts), True: StableDiffusionInpaintPipeline(**parts)}
    parts = dict(sdxl(), add_watermarker=False)
    made["tiny-sdxl"] = {False: StableDiffusionXLImg2ImgPipeline(**parts),
                         True: StableDiffusionXLInpaintPipeline(**parts)}
    return made


@torch.inference_mode()
def main():
    made, out, all_rows = pipelines(), {}, rows()
    configs = {name: dict(of[False].scheduler.config) for name, of in made.items()}
    for name, row in all_rows.items():
        pipe = made[row["model"]][row.get("mask", False)]
        pipe.set_progress_bar_config(disable=True)
        config = configs[row["model"]]
        kind, more = SCHEDULERS[row["scheduler"]]
        pipe.scheduler = getattr(diffusers, kind).from_config(config, **more)
        width, height = row["size"]
        more = {"image": picture(width, height)}
        if "mask" in row:
            more |= {"mask_image": mask(width, height), "width": width, "height": height}
        run = lambda kind: pipe(PROMPT, strength=row["strength"], num_inference_steps=STEPS, output_type=kind,
                                guidance_scale=row.get("guidance_scale", GUIDANCE),
                                generator=torch.Generator("cpu").manual_seed(SEED), **more).images
        latents = run("latent")
        assert latents.isfinite().all(), name
        out[f"{name}.latents"] = latents
        if name in ("img2img default", "masked all steps", "inpaint", "img2img sdxl"):
            out[f"{name}.image"] = torch.tensor((run("np")[0] * 255).round().astype("uint8"))
        print(name, tuple(latents.shape), round(latents.std().item(), 3))
    about = {"versions": versions(), "prompt": PROMPT, "seed": SEED, "steps": STEPS, "guidance_scale": GUIDANCE,
             "rows": all_rows}
    write_tensors(GOLDEN / "img2img.safetensors", out, about)


if __name__ == "__main__":
    main()
