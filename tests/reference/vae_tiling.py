"""vae_tiling.safetensors: what the autoencoders of tiny-sd1 and tiny-vae make of pictures that are larger than a tile,
and pictures of tiny-sd1 with tiles. Inputs come from `formula.py`; of outputs of tiny-vae only the end is kept.
"""

import math

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

import formula
import tiny_vae
from common import GOLDEN, versions, write_tensors
from img2img import picture

PROMPT, HEIGHT, WIDTH, STEPS, SEED = "a photo of the red fox", 104, 120, 4, 5


def values(name, *shape):
    """Numbers from -0.87 to 0.87."""
    return formula.weight("tiling", name, (math.prod(shape),), factor=5.0).reshape(shape)


@torch.inference_mode()
def main():
    pipe = StableDiffusionPipeline.from_pretrained(GOLDEN / "tiny-sd1", safety_checker=None,
                                                   requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    vae, out = pipe.vae, {}
    latents, pixels = values("latents", 1, 4, 13, 12), values("pixels", 1, 3, 104, 96)
    whole = vae.decode(latents / 0.18215).sample
    vae.enable_tiling()
    assert vae.tile_latent_min_size == 8
    out |= {"decoded": vae.decode(latents / 0.18215).sample, "encoded": vae.encode(pixels).latent_dist.parameters}
    assert (out["decoded"] - whole).abs().max() > 0.05
    run = lambda pipe, **more: pipe(PROMPT, num_inference_steps=STEPS,
                                    generator=torch.Generator("cpu").manual_seed(SEED), **more).images
    image = run(pipe, height=HEIGHT, width=WIDTH, output_type="np")[0]
    out["image"] = torch.tensor((image * 255).round().astype("uint8"))
    again = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    out["img2img.latents"] = run(again, image=picture(WIDTH, HEIGHT), strength=0.6, output_type="latent")

    tiny = tiny_vae.made()
    tiny.enable_tiling()
    # Tiles of 64 latents begin at 0 and 56.
    for name, height, width in (("wide", 2, 64), ("high", 60, 2), ("both", 58, 59)):
        decoded = tiny.decode(values(name, 1, 4, height, width)).sample
        out[f"{name}.decoded"] = decoded[..., -80:, -112:] if name != "both" else decoded[..., -32:, -32:]
    out["tiny.encoded"] = tiny.encode(values("tiny", 1, 3, 16, 464)).latents
    print({name: tuple(tensor.shape) for name, tensor in out.items()})
    about = {"versions": versions(), "prompt": PROMPT, "seed": SEED, "steps": STEPS, "height": HEIGHT, "width": WIDTH}
    write_tensors(GOLDEN / "vae_tiling.safetensors", out, about)


if __name__ == "__main__":
    main()
