"""tests/golden/tiny-sd1.safetensors and tiny-sd2.safetensors: each part of the tiny pipelines, then whole pictures."""

import torch
from diffusers import (DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
                       EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline)

from common import GOLDEN, plain_config, versions, write_tensors
from tiny_models import SD1, SD2

PROMPT = "a photo of the red fox, in the rain!"
HEIGHT, WIDTH, STEPS, SEED = 96, 64, 10, 7
# name -> (class, what is passed to from_config beside the pipeline's own config)
SCHEDULERS = {
    "pndm": (PNDMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
}


def load(folder):
    # transformers would keep f16 files in f16 unless told.
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None,
                                                   local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert all(p.dtype == torch.float32 for m in (pipe.text_encoder, pipe.unet, pipe.vae) for p in m.parameters())
    return pipe


def token_ids(tokenizer, text):
    """As the pipeline asks for them."""
    return tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
                     return_tensors="pt").input_ids


def parts(pipe, out):
    draw = torch.Generator("cpu").manual_seed(1)
    randn = lambda *shape: torch.randn(shape, generator=draw)
    ids = torch.cat([token_ids(pipe.tokenizer, PROMPT), token_ids(pipe.tokenizer, "")])
    out["text.ids"] = ids.to(torch.int32)
    out["text.output"] = pipe.text_encoder(ids, attention_mask=None)[0]
    for name, shape, timestep in (("even", (2, 4, 16, 16), 500.0), ("odd", (1, 4, 13, 9), 37.25)):
        x, context = randn(*shape), randn(shape[0], 77, 32)
        out |= {f"unet.{name}.latents": x, f"unet.{name}.context": context,
                f"unet.{name}.timestep": torch.tensor([timestep]),
                f"unet.{name}.output": pipe.unet(x, torch.tensor(timestep), context).sample}
    for name, size in (("even", (8, 8)), ("odd", (5, 3))):
        z = randn(1, 4, *size)
        out |= {f"vae.decode.{name}.latents": z, f"vae.decode.{name}.output": pipe.vae.decode(z).sample}
    image = torch.rand((1, 3, 64, 48), generator=draw) * 2 - 1
    out |= {"vae.encode.image": image, "vae.encode.mean": pipe.vae.encode(image).latent_dist.mean}


def pictures(pipe, out, about):
    config = pipe.scheduler.config
    noise = torch.randn((1, 4, HEIGHT // 8, WIDTH // 8), generator=torch.Generator("cpu").manual_seed(SEED))
    out["noise"] = noise

    def run(guidance, **more):
        generator = torch.Generator("cpu").manual_seed(SEED)
        return pipe(PROMPT, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, guidance_scale=guidance,
                    generator=generator, **more).images

    for name, (kind, overrides) in SCHEDULERS.items():
        pipe.scheduler = kind.from_config(config, **overrides)
        steps = []

        def keep(pipe, i, t, tensors):
            steps.append(tensors["latents"].clone())
            return tensors

        out[f"{name}.latents.guided"] = run(7.5, output_type="latent", callback_on_step_end=keep)
        if name == "pndm":
            out["pndm.trajectory.guided"] = torch.cat(steps)
        out[f"{name}.latents.unguided"] = run(1.0, output_type="latent")
        pipe.scheduler.set_timesteps(STEPS)
        out[f"{name}.timesteps"] = pipe.scheduler.timesteps.to(torch.float32)
        if hasattr(pipe.scheduler, "sigmas"):
            out[f"{name}.sigmas"] = pipe.scheduler.sigmas.to(torch.float32)
        out[f"{name}.init_noise_sigma"] = torch.as_tensor(pipe.scheduler.init_noise_sigma).float().reshape(1)
        about[f"scheduler.{name}"] = {"class": kind.__name__, "overrides": overrides,
                                      "config": plain_config(pipe.scheduler)}

    pipe.scheduler = PNDMScheduler.from_config(config)
    out["pndm.image"] = torch.tensor((run(7.5, output_type="np")[0] * 255).round().astype("uint8"))
    as_pil = torch.tensor(list(run(7.5, output_type="pil")[0].tobytes()), dtype=torch.uint8)
    assert torch.equal(as_pil, out["pndm.image"].flatten())


@torch.inference_mode()
def golden(spec):
    name = spec["name"]
    pipe = load(GOLDEN / name)
    out = {}
    about = {"versions": versions(), "prompts": [PROMPT, ""], "prompt": PROMPT, "negative_prompt": "",
             "seed": SEED, "steps": STEPS, "height": HEIGHT, "width": WIDTH, "guided": 7.5, "unguided": 1.0,
             "dtype": "float32", "parts_seed": 1, "weights_seed": spec["seed"]}
    parts(pipe, out)
    pictures(pipe, out, about)
    for tensor_name, tensor in out.items():
        assert tensor.isfinite().all(), tensor_name
    write_tensors(GOLDEN / f"{name}.safetensors", out, about)


def main():
    for spec in (SD1, SD2):
        golden(spec)


if __name__ == "__main__":
    main()
