"""tests/golden/schedulers.json: timesteps, noise levels and short runs of every scheduler with a made-up network."""

import sys
import warnings

import diffusers
import torch

from common import GOLDEN, f32, versions, write_rows

# SD 1.5's, with the keys that its file leaves to the class defaults written out.
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
          "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True, "clip_sample": False}
SPACINGS = ("leading", "linspace", "trailing")
VARIANTS = [("leading", "epsilon"), ("linspace", "epsilon"), ("trailing", "epsilon"), ("leading", "v_prediction"),
            ("trailing", "v_prediction"), ("trailing", "sample")]
STRENGTHS = [(20, 0.75), (10, 0.35), (7, 0.9)]
LATENT_SEED, NOISE_SEED = 11, 12
SHAPE = (1, 4, 2, 2)

KARRAS, EXPONENTIAL, BETA = ({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta"))
SDE, HEUN, THIRD = {"algorithm_type": "sde-dpmsolver++"}, {"solver_type": "heun"}, {"solver_order": 3}
SIGMA_MIN, ZERO_SNR = {"final_sigmas_type": "sigma_min"}, {"rescale_betas_zero_snr": True}
MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
# sdshard's name, which words may follow -> (class, what is passed to from_config beside CONFIG)
SCHEDULERS = {
    "pndm": ("PNDMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddim, zero SNR": ("DDIMScheduler", ZERO_SNR),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler, zero SNR": ("EulerDiscreteScheduler", ZERO_SNR),
    "euler-karras": ("EulerDiscreteScheduler", KARRAS),
    "euler-exponential": ("EulerDiscreteScheduler", EXPONENTIAL),
    "euler-beta": ("EulerDiscreteScheduler", BETA),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "euler-ancestral, zero SNR": ("EulerAncestralDiscreteScheduler", ZERO_SNR),
    "heun": ("HeunDiscreteScheduler", {}),
    "heun, zero SNR, which it does not have": ("HeunDiscreteScheduler", ZERO_SNR),
    "heun-karras": ("HeunDiscreteScheduler", KARRAS),
    "heun-exponential": ("HeunDiscreteScheduler", EXPONENTIAL),
    "heun-beta": ("HeunDiscreteScheduler", BETA),
    "dpm++2m": (MULTI, {}),
    "dpm++2m, zero SNR": (MULTI, ZERO_SNR),
    "dpm++2m, order 3": (MULTI, THIRD),
    "dpm++2m, Heun's weights": (MULTI, HEUN),
    "dpm++2m, up to the least noise": (MULTI, SIGMA_MIN),
    "dpm++2m-karras": (MULTI, KARRAS),
    "dpm++2m-exponential": (MULTI, EXPONENTIAL),
    "dpm++2m-beta": (MULTI, BETA),
    "dpm++2m-sde": (MULTI, SDE),
    "dpm++2m-sde, Heun's weights": (MULTI, SDE | HEUN),
    "dpm++2m-sde-karras": (MULTI, SDE | KARRAS),
    "dpm++2m-sde-exponential": (MULTI, SDE | EXPONENTIAL),
    "dpm++2s": (SINGLE, {}),
    "dpm++2s, Heun's weights": (SINGLE, HEUN),
    "dpm++2s, up to the least noise": (SINGLE, SIGMA_MIN),
    "dpm++2s-karras": (SINGLE, KARRAS),
    "dpm++sde": (SINGLE, SDE),
    "dpm++sde-karras": (SINGLE, SDE | KARRAS),
    "dpm++sde-beta": (SINGLE, SDE | BETA),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc, zero SNR": ("UniPCMultistepScheduler", ZERO_SNR),
    "unipc, order 1": ("UniPCMultistepScheduler", {"solver_order": 1}),
    "unipc, order 3": ("UniPCMultistepScheduler", THIRD),
    "unipc-karras": ("UniPCMultistepScheduler", KARRAS),
    "unipc-karras, up to the least noise": ("UniPCMultistepScheduler", KARRAS | SIGMA_MIN),
    "unipc-exponential": ("UniPCMultistepScheduler", EXPONENTIAL),
    "lcm": ("LCMScheduler", {}),
    "lcm, of 100 steps": ("LCMScheduler", {"original_inference_steps": 100, "timestep_scaling": 0.01}),
    "lcm, zero SNR": ("LCMScheduler", ZERO_SNR),
    "tcd": ("TCDScheduler", {}),
    "tcd, zero SNR": ("TCDScheduler", ZERO_SNR),
}
ETAS = {"ddim": (0.0, 1.0), "tcd": (0.0, 0.3, 1.0)}
# Schedulers whose steps are of every kind: their schedules have more rows.
MAIN = ("pndm", "ddim", "euler", "euler-ancestral", "dpm++2m", "dpm++2m-karras")

draws = 0


def count_draws():
    """Makes every scheduler count its draws of noise."""
    modules = {sys.modules[getattr(diffusers, cls).__module__] for cls, _ in SCHEDULERS.values()}
    for module in modules:
        if hasattr(module, "randn_tensor"):
            def counted(*args, draw=module.randn_tensor, **more):
                global draws
                draws += 1
                return draw(*args, **more)
            module.randn_tensor = counted


def make(name, spacing, prediction):
    cls, overrides = SCHEDULERS[name]
    return getattr(diffusers, cls).from_config(CONFIG, timestep_spacing=spacing, prediction_type=prediction, **overrides)


def spacings(name):
    """Those that make a difference, or one."""
    cls = SCHEDULERS[name][0]
    full_range = cls in (MULTI, "UniPCMultistepScheduler") and "-" in name.replace("-sde", "")
    return ("linspace",) if full_range or cls in (SINGLE, "LCMScheduler", "TCDScheduler") else SPACINGS


def variants(name):
    """The spacings and predictions that a scheduler has."""
    for spacing, prediction in VARIANTS:
        absent = prediction == "sample" and name.split(",")[0] in ("pndm", "euler-ancestral")
        divides = "zero SNR" in name and prediction == "epsilon" and name.split(",")[0] in ("ddim", "lcm", "tcd")
        if len(spacings(name)) == 1 and (spacing, prediction) != ("linspace", "epsilon"):
            spacing = "linspace" if spacing == "trailing" and prediction != "epsilon" else None
        if spacing and not absent and not divides:
            yield spacing, prediction


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


def schedule(name, spacing, n):
    scheduler = make(name, spacing, "epsilon")
    scheduler.set_timesteps(n)
    return levels(scheduler) | {"kind": name, "spacing": spacing, "n": n,
            "init_noise_sigma": f32(scheduler.init_noise_sigma)[0], "timesteps": f32(scheduler.timesteps)}


def run(name, spacing, prediction, n, eta=None, strength=None):
    """The latents at the end. With a strength, the run begins in the middle, as diffusers' image to image does."""
    global draws
    scheduler = make(name, spacing, prediction)
    scheduler.set_timesteps(n)
    timesteps, draws = scheduler.timesteps, 0
    noise = torch.Generator("cpu").manual_seed(NOISE_SEED)
    x = torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(LATENT_SEED))
    if strength is None:
        x = x * scheduler.init_noise_sigma
    else:
        begin = max(n - min(int(n * strength), n), 0) * scheduler.order
        timesteps = timesteps[begin:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        x = scheduler.add_noise(torch.full(SHAPE, 0.5), x, timesteps[:1])
    takes = scheduler.step.__code__.co_varnames
    more = ({"generator": noise} if "generator" in takes else {}) | ({"eta": eta or 0.0} if "eta" in takes else {})
    for t in timesteps:
        out = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, **more).prev_sample
        assert x.dtype == torch.float32 and x.isfinite().all(), (name, spacing, n)
    row = {"kind": name, "spacing": spacing, "prediction": prediction, "n": n, "draws": draws,
           "end": f32(x)}
    return row | {k: v for k, v in (("eta", eta), ("strength", strength)) if v is not None}


def main():
    warnings.simplefilter("ignore")
    count_draws()
    about = {"versions": versions(), "config": CONFIG,
             "schedulers": {name: {"_class_name": cls} | keys for name, (cls, keys) in SCHEDULERS.items()},
             "network": "out = 0.3 * x + 0.1 * sin(t) in f32; x is the scaled model input, t the timestep as f32",
             "latents": f"randn(1, 4, 2, 2) of seed {LATENT_SEED} * init_noise_sigma; with a strength, that noise added to "
                        "a picture of 0.5",
             "first_noise": f32(torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(LATENT_SEED))),
             "noise": f"one generator of seed {NOISE_SEED}; draws is the number of randn(1, 4, 2, 2) in a run"}
    schedules = [schedule(name, spacing, n) for name in SCHEDULERS for spacing in spacings(name)
                 for n in ((1, 2, 4, 8, 20, 30, 50) if name in MAIN else (1, 2, 4, 8, 20))]
    plain = [name for name in SCHEDULERS if "," not in name]
    runs = [run(name, *variant, n) for name in SCHEDULERS for variant in variants(name)
            for n in ((1, 3, 10, 20) if name in plain else (1, 2, 10, 15))]
    runs += [run(name, spacing, "epsilon", n, eta=eta) for name, etas in ETAS.items() for spacing in spacings(name)
             for eta in etas for n in (1, 4, 7)]
    runs += [run(name, spacings(name)[0], "epsilon", n, strength=strength) for name in SCHEDULERS
             if not ("zero SNR" in name and name.split(",")[0] in ("ddim", "lcm", "tcd")) for n, strength in STRENGTHS]
    write_rows(GOLDEN / "schedulers.json", about, {"schedules": schedules, "runs": runs})


if __name__ == "__main__":
    main()
