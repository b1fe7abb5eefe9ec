"""OpenVINO GenAI's Text2ImagePipeline, which only draws whole pictures."""

import openvino
import openvino_genai

from common import GUIDANCE, Base, run
from peer_openvino import folder, properties


class Noise(openvino_genai.Generator):
    """Gives the inputs' noise instead of random numbers."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def next(self):
        return 0.0

    def randn_tensor(self, shape):
        return openvino.Tensor(self.noise.reshape(list(shape)).copy())


class Peer(Base):
    def __init__(self, task):
        self.task, place = task, folder(task)
        self.pipe = openvino_genai.Text2ImagePipeline(place / "tiny" if task.decoder == "tiny" else place)
        kind = openvino_genai.Scheduler.Type.DDIM
        self.pipe.set_scheduler(openvino_genai.Scheduler.from_config(place / "scheduler/scheduler_config.json", kind))
        self.pipe.reshape(1, task.size, task.size, GUIDANCE)
        self.pipe.compile("CPU", **properties(task))

    def picture(self, number, steps):
        task = self.task
        images = self.pipe.generate(task.prompt(number), height=task.size, width=task.size, guidance_scale=GUIDANCE,
                                    num_inference_steps=steps, generator=Noise(task.inputs["noise"]))
        return images.data[0].copy()


if __name__ == "__main__":
    run(Peer)
