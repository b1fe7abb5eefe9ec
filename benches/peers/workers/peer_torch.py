"""diffusers and torch."""

import numpy
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline

from common import GUIDANCE, TIMESTEP, Base, run


def pipeline(model, tiny, dtype=torch.float32):
    more = {"vae": AutoencoderTiny.from_pretrained(tiny, dtype=dtype)} if tiny else {}
    pipe = StableDiffusionPipeline.from_pretrained(model, dtype=dtype, safety_checker=None,
                                                   requires_safety_checker=False, local_files_only=True, **more)
    for network in (pipe.text_encoder, pipe.unet, pipe.vae):
        network.eval().requires_grad_(False)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Peer(Base):
    def __init__(self, task):
        options = task.options
        torch.set_num_threads(task.threads)
        self.task, self.dtype = task, getattr(torch, options.get("dtype", "float32"))
        self.pipe = pipeline(task.model, task.tiny if task.decoder == "tiny" else None, self.dtype)
        if options.get("channels_last"):
            for network in (self.pipe.unet, self.pipe.vae):
                network.to(memory_format=torch.channels_last)
        if options.get("int8"):
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
            for network in (self.pipe.text_encoder, self.pipe.unet):
                quantize_(network, Int8DynamicActivationInt8WeightConfig())
        if options.get("compile"):
            torch._inductor.config.freezing = True
            for network in (self.pipe.text_encoder, self.pipe.unet, self.pipe.vae.decoder):
                network.compile()

    @torch.inference_mode()
    def picture(self, number, steps):
        task, noise = self.task, torch.from_numpy(self.task.inputs["noise"]).to(self.dtype)
        images = self.pipe(task.prompt(number), height=task.size, width=task.size, num_inference_steps=steps,
                           guidance_scale=GUIDANCE, latents=noise, output_type="np").images
        return (images[0] * 255).round().astype(numpy.uint8)

    def components(self):
        inputs, pipe = self.task.inputs, self.pipe
        ids, timestep = torch.from_numpy(self.task.ids(0)), torch.tensor(TIMESTEP)
        latents, features = (torch.from_numpy(inputs[name]).to(self.dtype) for name in ("latents", "features"))
        calls = {
            "text_encoder": lambda: pipe.text_encoder(ids).last_hidden_state,
            "unet": lambda: pipe.unet(latents, timestep, features).sample,
            "vae": lambda: pipe.vae.decode(latents[:1]).sample,
        }
        return {name: torch.inference_mode()(lambda call=call: call().float().numpy())
                for name, call in calls.items()}


if __name__ == "__main__":
    run(Peer)
