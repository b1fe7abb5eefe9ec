"""tests/golden/schedulers.json: timesteps, sigmas and short runs of every scheduler with a made-up network."""

import torch

from common import GOLDEN, f32, versions, write_rows
from pipelines import SCHEDULERS

# SD 1.5's, with the keys that its file leaves to the class defaults written out.
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
          "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True, "clip_sample": False}
VARIANTS = [("leading", "epsilon"), ("linspace", "epsilon"), ("trailing", "epsilon"), ("leading", "v_prediction"),
            ("trailing", "v_prediction")]
LATENT_SEED, NOISE_SEED = 11, 12
SHAPE = (1, 4, 2, 2)


def make(kind, spacing, prediction):
    cls, overrides = SCHEDULERS[kind]
    return cls.from_config(CONFIG, timestep_spacing=spacing, prediction_type=prediction, **overrides)


def network(x, t):
    """0.3 x + 0.1 sin(t), t rounded to f32, everything in f32."""
    return 0.3 * x + 0.1 * torch.sin(t.to(torch.float32))


def levels(scheduler):
    """The weights of a picture and of noise in latents that begin at each step: `add_noise`, as image to image calls it."""
    one, zero, picture, noise = torch.ones(1), torch.zeros(1), [], []
    for step, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(step)
        picture += f32(scheduler.add_noise(one, zero, t.reshape(1)))
        noise += f32(scheduler.add_noise(zero, one, t.reshape(1)))
    return {"picture": picture, "noise": noise}


def schedule(kind, spacing, n):
    scheduler = make(kind, spacing, "epsilon")
    scheduler.set_timesteps(n)
    sigmas = f32(scheduler.sigmas) if hasattr(scheduler, "sigmas") else None
    return levels(scheduler) | {"kind": kind, "spacing": spacing, "n": n, "init_noise_sigma": f32(scheduler.init_noise_sigma)[0],
            "timesteps": f32(scheduler.timesteps), "sigmas": sigmas}


def run(kind, spacing, prediction, n):
    scheduler = make(kind, spacing, prediction)
    scheduler.set_timesteps(n)
    noise = torch.Generator("cpu").manual_seed(NOISE_SEED)
    x = torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(LATENT_SEED)) * scheduler.init_noise_sigma
    start, after = f32(x), []
    more = {"generator": noise} if kind == "euler_ancestral" else {}
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, **more).prev_sample
        assert x.dtype == torch.float32 and x.isfinite().all(), (kind, spacing, n)
        after.append(f32(x))
    return {"kind": kind, "spacing": spacing, "prediction": prediction, "n": n, "start": start, "after": after}


def main():
    about = {"versions": versions(), "config": CONFIG,
             "overrides": {k: o for k, (_, o) in SCHEDULERS.items()},
             "network": "out = 0.3 * x + 0.1 * sin(t) in f32; x is the scaled model input, t the timestep as f32",
             "latents": f"randn(1, 4, 2, 2) of seed {LATENT_SEED} * init_noise_sigma = start",
             "ancestral_noise": f"one generator of seed {NOISE_SEED}, randn(1, 4, 2, 2) at each step, the last too"}
    schedules = [schedule(kind, spacing, n) for kind in SCHEDULERS for spacing in ("leading", "linspace", "trailing")
                 for n in (1, 4, 20, 30, 50)]
    runs = [run(kind, *variant, n) for kind in SCHEDULERS for variant in VARIANTS for n in (1, 3, 10)]
    write_rows(GOLDEN / "schedulers.json", about, {"schedules": schedules, "runs": runs})


if __name__ == "__main__":
    main()
