"""OpenVINO, with networks compiled for one size and the loop over steps in NumPy."""

from pathlib import Path

import numpy
import openvino

from common import TIMESTEP, Base, denoise, pixels, run


def properties(task):
    """Of the CPU's plug-in, which would choose bf16 by itself where the CPU has it."""
    return {"INFERENCE_PRECISION_HINT": task.options["precision"], "INFERENCE_NUM_THREADS": task.threads,
            "PERFORMANCE_HINT": "LATENCY"}


def folder(task):
    return Path(task.models) / ("openvino-int8" if task.options.get("weights") == "int8" else "openvino")


class Peer(Base):
    def __init__(self, task):
        self.task, side = task, task.latent_size
        core, place = openvino.Core(), folder(task)

        def compiled(part, shapes):
            model = core.read_model(place / part / "openvino_model.xml")
            model.reshape(shapes)
            return core.compile_model(model, "CPU", properties(task))

        self.text_encoder = compiled("text_encoder", {"input_ids": [2, 77]})
        width = task.inputs["features"].shape[2]
        self.unet = compiled("unet", {"sample": [2, 4, side, side], "timestep": [1],
                                      "encoder_hidden_states": [2, 77, width]})
        self.scale = 1 if task.decoder == "tiny" else 0.18215
        self.vae = compiled("tiny/vae_decoder" if task.decoder == "tiny" else "vae_decoder",
                            {"latent_sample": [1, 4, side, side]})

    def call_unet(self, latents, timestep, features):
        return self.unet([latents, numpy.array([timestep]), features])[0]

    def picture(self, number, steps):
        features = self.text_encoder([self.task.ids(number)])[0]
        latents = denoise(self.call_unet, features, self.task.inputs["noise"], steps)
        return pixels(self.vae([latents / numpy.float32(self.scale)])[0])

    def components(self):
        inputs, ids = self.task.inputs, self.task.ids(0)
        latents, features = inputs["latents"], inputs["features"]
        return {
            "text_encoder": lambda: self.text_encoder([ids])[0],
            "unet": lambda: self.call_unet(latents, TIMESTEP, features),
            "vae": lambda: self.vae([latents[:1]])[0],
        }


if __name__ == "__main__":
    run(Peer)
