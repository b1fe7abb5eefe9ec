"""Writes inputs of the workers and what diffusers and torch make of them in f32: FOLDER/inputs.npz, noise.safetensors.
Also a tiny decoder (AutoencoderTiny, random weights in f16) unless there is one: MODEL TINY_VAE FOLDER SIZE"""

import sys
from pathlib import Path

import numpy
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from common import GUIDANCE, STEPS, TIMESTEP
from peer_torch import pipeline

PROMPTS = [f"a photo of a red fox in the {place}" for place in
           ("snow", "rain", "garden", "forest", "city", "desert", "morning", "evening")]


def make_tiny(folder):
    torch.manual_seed(1)
    vae = AutoencoderTiny()
    with torch.no_grad():
        for weight in vae.parameters():
            if weight.ndim == 4:
                weight.normal_(std=weight[0].numel() ** -0.5)
        # So that pictures, from 0 to 1 here, are not all black and white.
        last = vae.decoder.layers[-1]
        last.weight /= 5 * vae.decoder(torch.randn(1, 4, 32, 32)).std()
        last.bias.fill_(0.5)
    vae.half().save_pretrained(folder)


@torch.inference_mode()
def main():
    model, tiny, folder, size = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    if not (tiny / "config.json").exists():
        make_tiny(tiny)
    folder.mkdir(parents=True)
    pipe, small = pipeline(model, None), pipeline(model, tiny)
    draw, side = torch.Generator("cpu").manual_seed(size), size // 8
    randn = lambda *shape: torch.randn(shape, generator=draw)
    tokens = lambda text: pipe.tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
    ids, none = torch.tensor([tokens(text) for text in PROMPTS]), torch.tensor(tokens(""))
    latents, noise = randn(2, 4, side, side), randn(1, 4, side, side)
    features = pipe.text_encoder(torch.stack([none, ids[0]])).last_hidden_state
    out = {
        "prompts": numpy.array(PROMPTS), "ids": ids, "no_prompt_ids": none, "latents": latents, "noise": noise,
        "features": features, "reference.text_encoder": features,
        "reference.unet": pipe.unet(latents, torch.tensor(TIMESTEP), features).sample,
        "reference.vae": pipe.vae.decode(latents[:1]).sample,
    }
    for name, pipe in (("full", pipe), ("tiny", small)):
        picture = pipe(PROMPTS[0], height=size, width=size, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                       latents=noise, output_type="np").images[0]
        out[f"reference.{name}.picture"] = (picture * 255).round().astype("uint8")
    numpy.savez(folder / "inputs.npz", **out)
    save_file({"latent": noise}, folder / "noise.safetensors")


if __name__ == "__main__":
    main()
