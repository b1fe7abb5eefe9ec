"""What all workers share. A worker is a process for one peer, one size and one decoder: it loads, draws a picture of
one step, measures, and compares what it computed with the reference. Figures go as lines of JSON to the file `out`."""

import json
import sys
import time
from pathlib import Path

import numpy

STEPS, GUIDANCE, TIMESTEP = 4, 7.5, 500
# The largest root mean square of an f32 peer's error, divided by that of the reference. Pictures are whole numbers,
# which OpenVINO GenAI rounds down: half a level, where the pictures of random weights deviate by 32 levels.
TOLERANCE = {"text_encoder": 1e-4, "unet": 1e-3, "vae": 1e-3, "picture": 3e-2}
# From here on the result of any peer is called wrong: it has nothing to do with the reference's.
WRONG = 0.7


class Task:
    def __init__(self):
        for key, value in json.loads(sys.argv[1]).items():
            setattr(self, key, value)
        self.inputs = numpy.load(Path(self.inputs_folder) / "inputs.npz")
        self.latent_size = self.size // 8

    def _write(self, line):
        with open(self.out, "a") as file:
            file.write(json.dumps(line) + "\n")

    def figure(self, cell, *values):
        """Seconds, or bytes, of one cell of the table."""
        self._write({"cell": cell, "values": values})

    def say(self, kind, name, value):
        self._write({"kind": kind, "name": name, "value": value})

    def component_cell(self, name):
        return name if name == "text_encoder" else f"{name} {self.latent_size}"

    def picture_cell(self, what):
        return f"{what} {self.size}" + (" tiny" if self.decoder == "tiny" else "")

    def loaded(self):
        self.figure("load tiny" if self.decoder == "tiny" else "load", time.time() - self.started)

    def prompt(self, number):
        return str(self.inputs["prompts"][number % len(self.inputs["prompts"])])

    def ids(self, number):
        """Token ids of the empty prompt and of a prompt, [2, 77]."""
        return numpy.stack([self.inputs["no_prompt_ids"], self.inputs["ids"][number % len(self.inputs["ids"])]])

    def check(self, name, found):
        """Compares an output with the reference's. Raises if it cannot be called the same computation."""
        found = numpy.asarray(found, numpy.float32)
        wanted = self.inputs[f"reference.{self.decoder}.{name}" if name == "picture" else f"reference.{name}"]
        if name == "picture":
            wanted = wanted.astype(numpy.float32) - 128
            found = found - 128
        if found.shape != wanted.shape:
            raise SystemExit(f"error: {name}: the output is {list(found.shape)}, not {list(wanted.shape)}")
        if not numpy.isfinite(found).all():
            raise SystemExit(f"error: {name}: the output is not finite")
        error = float(numpy.sqrt(numpy.mean((found - wanted) ** 2) / numpy.mean(wanted ** 2)))
        self.say("checks", self.picture_cell(name) if name == "picture" else self.component_cell(name), error)
        limit = TOLERANCE[name] if self.exact else WRONG
        if error > limit:
            raise SystemExit(f"error: {name}: the output is {error:.2g} off the reference's, {limit:g} at most")

    def sane(self, picture):
        """Checks a picture whose noise is not the reference's."""
        found = numpy.asarray(picture, numpy.float32)
        if found.shape != (self.size, self.size, 3) or not numpy.isfinite(found).all() or found.std() < 1:
            raise SystemExit(f"error: this is no picture: {list(found.shape)}, deviation {found.std():.2g}")
        self.say("checks", self.picture_cell("picture"), "is a picture; other noise than the reference's")


def peak_bytes(pid="self"):
    """The most memory that the process has occupied, with the pages of mapped files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024


def timed(call):
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


class Base:
    """What `run` wants of a peer, whose `__init__` loads it."""

    own_noise = False  # if it cannot be given the inputs' noise

    def picture(self, number, steps):
        """A picture with prompt `number`, u8 [height, width, 3]."""
        raise NotImplementedError

    def components(self):
        """For each component a call that gives its output for the inputs; none if it only draws whole pictures."""
        return {}

    def figures(self):
        """Pairs of a component and seconds, of what the peer has measured itself while it drew pictures."""
        return []


def run(load):
    task = Task()
    peer = load(task)
    task.loaded()
    peer.picture(0, 1)
    task.figure(task.picture_cell("start"), time.time() - task.started)
    outputs = {}
    if task.decoder == "full":
        for name, call in peer.components().items():
            outputs[name] = call()
            task.figure(task.component_cell(name), *(timed(call)[1] for _ in range(task.repeat)))
    drawn = [timed(lambda: peer.picture(number, STEPS)) for number in range(task.pictures)]
    task.figure(task.picture_cell("picture"), *(seconds for _, seconds in drawn))
    task.figure(task.picture_cell("memory"), peak_bytes())
    if task.decoder == "full":
        for name, seconds in peer.figures():
            task.figure(task.component_cell(name), *seconds)
    for name, output in outputs.items():
        task.check(name, output)
    if peer.own_noise:
        task.sane(drawn[0][0])
    else:
        task.check("picture", drawn[0][0])


class Ddim:
    """DDIM with the settings of Stable Diffusion 1: Song et al. 2020, steps at multiples of 1000 / steps, plus one."""

    def __init__(self, steps):
        betas = numpy.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000) ** 2
        self.alphas = numpy.cumprod(1 - betas)
        self.stride = 1000 // steps
        self.timesteps = [i * self.stride + 1 for i in reversed(range(steps))]

    def step(self, noise, timestep, latents):
        before = timestep - self.stride
        alpha, alpha_before = self.alphas[timestep], self.alphas[max(before, 0)]
        clean = (latents - (1 - alpha) ** 0.5 * noise) / alpha ** 0.5
        return (alpha_before ** 0.5 * clean + (1 - alpha_before) ** 0.5 * noise).astype(numpy.float32)


def denoise(unet, features, noise, steps):
    """`unet(latents, timestep, features)` with two latents each; features [2, 77, width], the negative ones first."""
    schedule, latents = Ddim(steps), noise
    for timestep in schedule.timesteps:
        negative, positive = unet(numpy.concatenate([latents, latents]), timestep, features)
        latents = schedule.step((negative + GUIDANCE * (positive - negative))[None], timestep, latents)
    return latents


def pixels(decoded):
    """[1, 3, height, width] from -1 to 1 as u8 [height, width, 3]."""
    return numpy.round(numpy.clip(decoded[0].transpose(1, 2, 0) * 127.5 + 127.5, 0, 255)).astype(numpy.uint8)
