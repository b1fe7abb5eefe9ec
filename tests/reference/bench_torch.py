"""Seconds per component of diffusers and torch in f32 on the CPU, for comparison with `sdshard bench`.

text_encoder: one call with a batch of `--batch`. unet: one call with `--batch` latents. vae: decode of one picture."""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from common import versions
from pipelines import load, token_ids


def measure(call, repeat):
    call()  # warm-up
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}


@torch.inference_mode()
def main():
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--model", type=Path, required=True)
    cli.add_argument("--latent-size", default="64x64", help="HEIGHTxWIDTH")
    cli.add_argument("--batch", type=int, default=2)
    cli.add_argument("--repeat", type=int, default=5)
    cli.add_argument("--threads", type=int, default=2)
    cli.add_argument("--json", action="store_true", help="print JSON")
    args = cli.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(False)

    pipe = load(args.model)
    height, width = map(int, args.latent_size.split("x"))
    draw = torch.Generator("cpu").manual_seed(0)
    ids = token_ids(pipe.tokenizer, "a photo of a dog").repeat(args.batch, 1)
    latents = torch.randn(args.batch, pipe.unet.config.in_channels, height, width, generator=draw)
    context = torch.randn(args.batch, ids.shape[1], pipe.unet.config.cross_attention_dim, generator=draw)
    t = torch.tensor(500)
    result = {
        "text_encoder": measure(lambda: pipe.text_encoder(ids)[0], args.repeat),
        "unet": measure(lambda: pipe.unet(latents, t, context).sample, args.repeat),
        "vae": measure(lambda: pipe.vae.decode(latents[:1]).sample, args.repeat),
    }
    if args.json:
        about = {"latent_size": args.latent_size, "batch": args.batch, "threads": args.threads, "repeat": args.repeat,
                 "versions": versions()}
        print(json.dumps(result | {"settings": about}))
    else:
        for part, seconds in result.items():
            print(f"{part:12} median {seconds['median_s']:.3f} s, {seconds['min_s']:.3f} to {seconds['max_s']:.3f}")


if __name__ == "__main__":
    main()
