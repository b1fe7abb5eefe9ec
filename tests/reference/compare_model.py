"""Runs a diffusers Stable Diffusion folder in f32 on the CPU and writes what sdshard's picture is compared with:
initial_latents (the noise, before the scheduler scales it), latents (final, before the VAE's scaling is taken off) and
image (u8, [height, width, 3]). The scheduler is the folder's unless --scheduler says otherwise."""

import argparse
from pathlib import Path

import torch

from common import plain_config, versions, write_tensors
from pipelines import SCHEDULERS, load, token_ids


@torch.inference_mode()
def compare(model, prompt, seed, steps, guidance, height=None, width=None, scheduler=None, ids_of=()):
    """Tensors and metadata of one picture; `ids.<i>` are the token ids of the texts in `ids_of`."""
    pipe = load(model)
    if scheduler:
        kind, overrides = SCHEDULERS[scheduler]
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **overrides)
    height = height or pipe.unet.config.sample_size * pipe.vae_scale_factor
    width = width or pipe.unet.config.sample_size * pipe.vae_scale_factor
    generator = lambda: torch.Generator("cpu").manual_seed(seed)
    shape = (1, pipe.unet.config.in_channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
    latents = pipe(prompt, height=height, width=width, num_inference_steps=steps, guidance_scale=guidance,
                   generator=generator(), output_type="latent").images
    # What the pipeline does with them for output_type="pil".
    image = pipe.image_processor.postprocess(pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample, "np")[0]
    out = {"initial_latents": torch.randn(shape, generator=generator()), "latents": latents,
           "image": torch.from_numpy((image * 255).round().astype("uint8"))}
    out |= {f"ids.{i}": token_ids(pipe.tokenizer, text)[0].to(torch.int32) for i, text in enumerate(ids_of)}
    about = {"versions": versions(), "prompt": prompt, "seed": seed, "steps": steps, "guidance": guidance,
             "height": height, "width": width, "dtype": "float32", "ids_of": list(ids_of),
             "scheduler": {"class": type(pipe.scheduler).__name__, "config": plain_config(pipe.scheduler)}}
    return out, about


def main():
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--model", type=Path, required=True)
    cli.add_argument("--prompt", required=True)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--steps", type=int, default=50)
    cli.add_argument("--guidance", type=float, default=7.5)
    cli.add_argument("--height", type=int)
    cli.add_argument("--width", type=int)
    cli.add_argument("--scheduler", choices=SCHEDULERS)
    cli.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    cli.add_argument("--png", type=Path, help="also write the picture here")
    args = cli.parse_args()
    out, about = compare(args.model, args.prompt, args.seed, args.steps, args.guidance, args.height, args.width,
                         args.scheduler, ids_of=[args.prompt, ""])
    write_tensors(args.out, out, about)
    if args.png:
        from PIL import Image

        Image.fromarray(out["image"].numpy()).save(args.png)


if __name__ == "__main__":
    main()
