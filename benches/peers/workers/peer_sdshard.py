"""sdshard: its program, as people run it. `bench` measures components; pictures are drawn by a process of their own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
from PIL import Image

from common import GUIDANCE, STEPS, Task


def run(task, arguments):
    """The lines of JSON that the program prints, its seconds and its peak memory in bytes."""
    started = time.time()
    process = subprocess.Popen([task.program, *arguments], stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in process.stdout.read().splitlines()]
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(os.waitstatus_to_exitcode(status))
    return lines, time.time() - started, usage.ru_maxrss * 1024


def bench(task):
    size = f"{task.latent_size}x{task.latent_size}"
    (found,), _, _ = run(task, ["bench", "--model", task.model, "--latent-size", size, "--batch", "2", "--json",
                                "--repeat", str(task.repeat), *task.options.get("arguments", [])])
    for name in ("text_encoder", "unet", "vae"):
        # The calls themselves are not printed.
        task.figure(task.component_cell(name), found[name]["median_s"])
    task.say("notes", "class", found["machine"]["class"])


def pictures(task, folder):
    prompts = [{"prompt": task.prompt(0), "steps": 1}]  # as the other workers warm up
    prompts += [{"prompt": task.prompt(number)} for number in range(task.pictures)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    arguments = ["--model", task.model, "--device", "cpu", "--scheduler", "ddim", "--steps", str(STEPS),
                 "--guidance-scale", str(GUIDANCE), "--width", str(task.size), "--height", str(task.size),
                 "--latents", Path(task.inputs_folder) / "noise.safetensors", "--output-dir", folder,
                 "--prompts-file", folder / "prompts.jsonl", "--json", "--no-fsync", *task.options.get("arguments", [])]
    if "map" in task.options:
        (folder / "map.toml").write_text(task.options["map"])
        arguments += ["--device-map", folder / "map.toml"]
    if task.decoder == "tiny":
        arguments += ["--vae", task.tiny]
    lines, seconds, bytes_ = run(task, arguments)
    *drawn, summary = lines
    summary = summary["summary"]
    before = seconds - summary["seconds"]
    task.figure("load tiny" if task.decoder == "tiny" else "load", before + summary["load_seconds"])
    task.figure(task.picture_cell("start"), before + summary["load_seconds"] + summary["warm_up_seconds"])
    task.figure(task.picture_cell("picture"), 1 / summary["steady_images_per_second"])
    task.figure(task.picture_cell("memory"), bytes_)
    task.say("notes", "class", drawn[1]["numerics"]["unet"])
    task.check("picture", numpy.asarray(Image.open(drawn[1]["file"])))


def main():
    task = Task()
    with tempfile.TemporaryDirectory(dir=task.work) as folder:
        pictures(task, Path(folder))
    if task.decoder == "full" and "map" not in task.options:  # `bench` has no device map
        bench(task)


if __name__ == "__main__":
    main()
