"""tiny-vae/ and tiny-vae.safetensors: a small AutoencoderTiny, whose weights come from `formula.py`, what it makes of
latents and of a picture, and pictures of tiny-sd1 with it, from noise and from a picture.
"""

import shutil

import torch
from diffusers import (AutoencoderTiny, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline,
                       StableDiffusionPipeline)

import formula
from common import GOLDEN, versions, write_tensors
from img2img import mask, picture as start

NAME = "tiny-vae"
PROMPT, HEIGHT, WIDTH, STEPS, SEED = "a photo of the red fox, in the rain!", 96, 64, 6, 7
WIDTHS = (32,) * 4
# So that values keep their size through convolutions with ReLUs, and pictures stay mostly inside -1..1.
FACTORS = {"encoder.layers.14.weight": 2.0, "decoder.layers.18.weight": 0.3}


def made():
    vae = AutoencoderTiny(encoder_block_out_channels=WIDTHS, decoder_block_out_channels=WIDTHS)
    return formula.fill(vae, "vae", FACTORS)


@torch.inference_mode()
def main():
    vae, folder = made(), GOLDEN / NAME
    shutil.rmtree(folder, ignore_errors=True)
    vae.save_config(folder)
    formula.write_description(folder / "tensors.json", {"vae": formula.describe(vae, FACTORS)})

    draw = torch.Generator("cpu").manual_seed(1)
    # Values beyond 3, which the clamp changes.
    latents = 2 * torch.randn(2, 4, 12, 9, generator=draw)
    picture = 2 * torch.rand(1, 3, 72, 56, generator=draw) - 1
    out = {"latents": latents, "decoded": vae.decode(latents).sample, "picture": picture,
           "encoded": vae.encode(picture).latents}

    pipe = StableDiffusionPipeline.from_pretrained(GOLDEN / "tiny-sd1", vae=vae, safety_checker=None,
                                                   requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    run = lambda kind: pipe(PROMPT, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, output_type=kind,
                            generator=torch.Generator("cpu").manual_seed(SEED)).images
    out["drawn.latents"] = run("latent")
    out["drawn.image"] = torch.tensor((run("np")[0] * 255).round().astype("uint8"))
    from_picture = dict(prompt=PROMPT, image=start(WIDTH, HEIGHT), strength=0.6, num_inference_steps=STEPS,
                        output_type="latent")
    for name, cls, more in (("img2img", StableDiffusionImg2ImgPipeline, {}),
                            ("masked", StableDiffusionInpaintPipeline,
                             dict(mask_image=mask(WIDTH, HEIGHT), height=HEIGHT, width=WIDTH))):
        other = cls(**pipe.components, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)
        generator = torch.Generator("cpu").manual_seed(SEED)
        out[f"{name}.latents"] = other(**from_picture, **more, generator=generator).images
    for name, tensor in out.items():
        assert tensor.float().isfinite().all(), name
    print({name: (round(t.float().mean().item(), 3), round(t.float().std().item(), 3)) for name, t in out.items()})
    about = {"versions": versions(), "prompt": PROMPT, "seed": SEED, "steps": STEPS, "height": HEIGHT, "width": WIDTH}
    write_tensors(GOLDEN / f"{NAME}.safetensors", out, about)


if __name__ == "__main__":
    main()
