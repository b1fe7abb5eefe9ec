"""tests/golden/circumstances.json: what diffusers makes of model folders whose schedulers and pipelines are not as usual.

Every case is tests/golden/tiny-sd1 with some JSON changed. `pipelines` is what the constructor of each pipeline class leaves
of the scheduler and the UNet's size: the timesteps of 7 steps with the pipeline's own scheduler and, `from_config`, with
others. `pictures` are whole runs: the first latents of three steps. `keys` are the parameters of the scheduler classes."""

import inspect
import json
import shutil
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline

from common import GOLDEN, f32, versions, write_rows

KINDS = {"pndm": "PNDMScheduler", "ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler",
         "euler-ancestral": "EulerAncestralDiscreteScheduler", "dpm++2m": "DPMSolverMultistepScheduler"}
# More of sdshard's schedulers: their classes, and what from_config is given for them.
MORE = {"heun": ("HeunDiscreteScheduler", {}), "dpm++2m-sde-karras": ("DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}), "dpm++2s": ("DPMSolverSinglestepScheduler", {}),
        "dpm++sde": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        "unipc-beta": ("UniPCMultistepScheduler", {"use_beta_sigmas": True}), "lcm": ("LCMScheduler", {}),
        "tcd": ("TCDScheduler", {})}
SCHEDULER, UNET, INDEX = "scheduler/scheduler_config.json", "unet/config.json", "model_index.json"
STEPS, SEED, PROMPT, VALUES = 3, 5, "a red fox", 32


def folder(at, changes, kind=None):
    """A copy with changed keys; a key set to "absent" is taken out. `kind` names the scheduler's class in both files."""
    shutil.copytree(GOLDEN / "tiny-sd1", at)
    if kind:
        changes = {**changes, INDEX: {**changes.get(INDEX, {}), "scheduler": ["diffusers", kind]},
                   SCHEDULER: {"_class_name": kind, **changes.get(SCHEDULER, {})}}
    for file, keys in changes.items():
        config = json.loads((at / file).read_text())
        config |= keys
        (at / file).write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    return changes


def load(at, cls):
    more = {}
    if "ControlNet" in cls.__name__:
        unet = diffusers.UNet2DConditionModel.from_pretrained(at, subfolder="unet")
        more["controlnet"] = ControlNetModel.from_unet(unet)
    pipe = cls.from_pretrained(at, dtype=torch.float32, safety_checker=None, local_files_only=True, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def timesteps(scheduler):
    scheduler.set_timesteps(7)
    return f32(scheduler.timesteps)


def pipelines():
    classes = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
               "StableDiffusionPAGPipeline", "StableDiffusionPAGImg2ImgPipeline", "StableDiffusionPAGInpaintPipeline",
               "StableDiffusionControlNetPipeline", "LEditsPPPipelineStableDiffusion", "CycleDiffusionPipeline",
               "StableDiffusionDiffEditPipeline", "StableDiffusionPipelineSafe", "StableDiffusionSAGPipeline"]
    # Constructors that repair nothing: one case is enough to tell.
    plain = ["LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline", "SemanticStableDiffusionPipeline",
             "StableDiffusionAttendAndExcitePipeline", "StableDiffusionGLIGENPipeline",
             "StableDiffusionInstructPix2PixPipeline", "StableDiffusionLDM3DPipeline",
             "StableDiffusionModelEditingPipeline", "StableDiffusionPanoramaPipeline",
             "StableDiffusionParadigmsPipeline"]
    odd = {"steps_offset": 0}, {"steps_offset": "absent"}, {"steps_offset": 3, "clip_sample": True}
    for name in classes + plain:
        cls = getattr(diffusers, name, None)
        if cls is None:
            from diffusers.pipelines import stable_diffusion_safe
            cls = getattr(stable_diffusion_safe, name)
        only_ddim = name in ("CycleDiffusionPipeline", "LEditsPPPipelineStableDiffusion")
        for kind in ["DDIMScheduler"] if only_ddim else ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"]:
            for keys in odd[2:] if name in plain else odd:
                changes = {SCHEDULER: keys, UNET: {"_diffusers_version": "0.8.0"}, INDEX: {"_class_name": name}}
                with tempfile.TemporaryDirectory() as at:
                    changes = folder(Path(at) / "m", changes, kind)
                    try:
                        pipe = load(Path(at) / "m", cls)
                    except ValueError as error:  # some classes want a scheduler of their own
                        print(name, kind, "left out:", str(error)[:90])
                        continue
                    config = pipe.scheduler.config
                    others = {}
                    if type(pipe.scheduler).__name__ == kind:
                        for short, other in KINDS.items():
                            made = getattr(diffusers, other).from_config(config)
                            clips = short == "ddim" and made.config.clip_sample
                            others[short] = None if clips else timesteps(made)
                        yield {"class": name, "changes": changes, "own": timesteps(pipe.scheduler),
                               "clips": bool(kind == "DDIMScheduler" and config.clip_sample), "others": others,
                               "sample_size": pipe.unet.config.sample_size}


def pictures():
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    cases = [(f"{short}, zero terminal SNR", kind, {SCHEDULER: zero}, None) for short, kind in KINDS.items() if short != "pndm"]
    cases += [(f"{short}, zero terminal SNR, leading", kind, {SCHEDULER: {**zero, "timestep_spacing": "leading"}}, None)
              for short, kind in KINDS.items() if short in ("ddim", "euler")]
    cases += [("euler, zero terminal SNR, epsilon", KINDS["euler"], {SCHEDULER: {**zero, "prediction_type": "epsilon"}}, None)]
    cases += [(f"{short} asked for", None, {}, short) for short in MORE]
    cases += [
        ("LCM's own", "LCMScheduler", {SCHEDULER: {"original_inference_steps": 25}}, None),
        ("Heun's own, exponential", "HeunDiscreteScheduler", {SCHEDULER: {"use_exponential_sigmas": True}}, None),
        ("UniPC's own, v-prediction", "UniPCMultistepScheduler", {SCHEDULER: {"prediction_type": "v_prediction"}}, None),
        ("Euler, which predicts the picture", KINDS["euler"],
         {SCHEDULER: {"prediction_type": "sample", "timestep_spacing": "trailing"}}, None),
    ]
    for own in ("DEISMultistepScheduler", "UniPCMultistepScheduler", "DDPMScheduler", "HeunDiscreteScheduler"):
        for short in ("euler", "ddim", "dpm++2m"):
            cases.append((f"{own}, {short} asked for", own, {}, short))
    cases += [
        ("DEIS's own solver type, dpm++2m asked for", "DEISMultistepScheduler", {SCHEDULER: {"solver_type": "logrho"}},
         "dpm++2m"),
        ("the index says DDIM, the config PNDM", None, {INDEX: {"scheduler": ["diffusers", "DDIMScheduler"]}}, None),
        ("the index says Euler, the config DDIM", None, {INDEX: {"scheduler": ["diffusers", "EulerDiscreteScheduler"]},
         SCHEDULER: {"_class_name": "DDIMScheduler", "timestep_spacing": "absent"}}, None),
        ("the config names no class", None, {SCHEDULER: {"_class_name": "absent"}}, None),
        ("the config names an unknown class", None, {SCHEDULER: {"_class_name": "MyOwnScheduler"}}, None),
        ("DDIM clips, in the file", KINDS["ddim"], {SCHEDULER: {"clip_sample": True}}, None),
        ("DDIM clips, by default", KINDS["ddim"], {SCHEDULER: {"clip_sample": "absent"}}, None),
        ("PNDM's file clips, ddim asked for", None, {SCHEDULER: {"clip_sample": True}}, "ddim"),
        ("steps_offset 0", None, {SCHEDULER: {"steps_offset": 0}}, None),
        ("steps_offset absent, euler asked for", None, {SCHEDULER: {"steps_offset": "absent"}}, "euler"),
        ("steps_offset 0, euler asked for", None, {SCHEDULER: {"steps_offset": 0}}, "euler"),
    ]
    for what, kind, changes, asked in cases:
        with tempfile.TemporaryDirectory() as at:
            changes = folder(Path(at) / "m", changes, kind)
            pipe = load(Path(at) / "m", StableDiffusionPipeline)
        if asked:
            cls, overrides = MORE[asked] if asked in MORE else (KINDS[asked], {})
            pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **overrides)
        latents = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent",
                       generator=torch.Generator("cpu").manual_seed(SEED)).images
        assert latents.isfinite().all(), what
        yield {"what": what, "changes": changes, "scheduler": asked, "latents": f32(latents)[:VALUES]}


def keys():
    for short, name in [*KINDS.items(), *((short, name) for short, (name, _) in MORE.items())]:
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
        yield {"kind": short, "keys": [key for key in parameters if key != "self"]}


def main():
    about = {"versions": versions(), "model": "tiny-sd1", "prompt": PROMPT, "seed": SEED, "steps": STEPS,
             "guidance_scale": 3.0, "pipeline_steps": 7}
    write_rows(GOLDEN / "circumstances.json", about,
               {"pipelines": list(pipelines()), "pictures": list(pictures()), "keys": list(keys())})


if __name__ == "__main__":
    main()
