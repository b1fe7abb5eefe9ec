"""stable-diffusion.cpp, by its Python package. It only draws whole pictures; times of components are from its log."""

import re
from pathlib import Path

import numpy
import stable_diffusion_cpp
from stable_diffusion_cpp import StableDiffusion

from common import GUIDANCE, STEPS, Base, run

LOGGED = {"text_encoder": r"get_learned_condition completed, taking ([\d.]+)\s?s",
          "unet": r"sampling completed, taking ([\d.]+)\s?s",
          "vae": r"decode_first_stage completed, taking ([\d.]+)\s?s"}


class Peer(Base):
    own_noise = True  # its DDIM has other timesteps, and noise cannot be given

    def __init__(self, task):
        self.task, self.log = task, []
        tiny = Path(task.tiny) / "diffusion_pytorch_model.safetensors" if task.decoder == "tiny" else ""
        self.model = StableDiffusion(model_path=str(task.model), taesd_path=str(tiny), n_threads=task.threads,
                                     wtype=task.options["type"], vae_decode_only=True, diffusion_flash_attn=True)
        self.callback = stable_diffusion_cpp.sd_log_callback(
            lambda level, text, data: self.log.append(text.decode(errors="replace")))
        stable_diffusion_cpp.sd_set_log_callback(self.callback, None)

    def picture(self, number, steps):
        if steps == STEPS:
            self.log.append("a measured picture begins")
        image, = self.model.generate_image(self.task.prompt(number), width=self.task.size, height=self.task.size,
                                           cfg_scale=GUIDANCE, sample_method="euler", sample_steps=steps, seed=1)
        return numpy.asarray(image)

    def figures(self):
        """The UNet's time is a step's: two calls with one of the latents each."""
        measured = "".join(self.log).split("a measured picture begins")[1:]
        for component, pattern in LOGGED.items():
            seconds = [float(value) for text in measured for value in re.findall(pattern, text)]
            yield component, [value / STEPS if component == "unet" else value for value in seconds]


if __name__ == "__main__":
    run(Peer)
