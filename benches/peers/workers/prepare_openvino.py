"""Writes a model as OpenVINO reads it, in the folders that OpenVINO GenAI wants: MODEL TINY_VAE FOLDER
Weights are stored in f16, as they are in the model; FOLDER/tiny is the same model with the tiny decoder."""

import gc
import json
import shutil
import sys
from pathlib import Path

import numpy
import openvino
import openvino.opset13 as opset
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from openvino_tokenizers import convert_tokenizer
from transformers import CLIPTextModel, CLIPTokenizer


class Call(torch.nn.Module):
    """A network whose only output is the one tensor that counts."""

    def __init__(self, network, call):
        super().__init__()
        self.network, self.call = network.eval().requires_grad_(False), call

    def forward(self, *inputs):
        return self.call(self.network, *inputs)


def halve(model):
    """Stores weights in f16, which loses nothing, for they came so. `compress_to_fp16` would also round the
    frequencies of the timestep's embedding, which are computed in f32: the UNet's output would be 0.4 % off."""
    for constant in model.get_ops():
        if constant.get_type_name() == "Constant" and constant.get_element_type() == openvino.Type.f32:
            values = constant.get_data()
            half = values.astype(numpy.float16)
            if (half == values).all() and values.size > 1024:
                constant.output(0).replace(opset.convert(opset.constant(half), "f32").output(0))


def convert(folder, config, network, call, inputs, output):
    """`inputs`: name to an example and its shape, in which -1 is any size."""
    folder.mkdir(parents=True)
    with torch.no_grad():
        model = openvino.convert_model(Call(network, call), example_input=tuple(x for x, _ in inputs.values()),
                                       input=[(openvino.PartialShape(shape), openvino.Type(x.numpy().dtype))
                                              for x, shape in inputs.values()])
    for place, name in zip(model.inputs, inputs):
        place.get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({output})
    halve(model)
    openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    (folder / "config.json").write_text(json.dumps(config))
    del model
    gc.collect()


def main():
    source, tiny, folder = map(Path, sys.argv[1:])
    config = lambda part: json.loads((source / part / "config.json").read_text())
    float32 = {"dtype": torch.float32}
    latents, any_latents = torch.zeros(2, 4, 32, 32), (-1, 4, -1, -1)

    text = CLIPTextModel.from_pretrained(source / "text_encoder", dtype=torch.float32)
    convert(folder / "text_encoder", config("text_encoder"), text, lambda net, ids: net(ids).last_hidden_state,
            {"input_ids": (torch.ones(2, 77, dtype=torch.int64), (-1, 77))}, "last_hidden_state")
    width = text.config.hidden_size
    del text
    unet = UNet2DConditionModel.from_pretrained(source / "unet", **float32)
    convert(folder / "unet", config("unet"), unet, lambda net, x, t, text: net(x, t, text).sample,
            {"sample": (latents, any_latents), "timestep": (torch.ones(1, dtype=torch.int64), (1,)),
             "encoder_hidden_states": (torch.zeros(2, 77, width), (-1, 77, width))}, "out_sample")
    del unet
    one = {"latent_sample": (latents[:1], any_latents)}
    vae = AutoencoderKL.from_pretrained(source / "vae", **float32)
    convert(folder / "vae_decoder", config("vae"), vae, lambda net, x: net.decode(x).sample, one, "sample")
    # GenAI reads an AutoencoderKL's config; the tiny decoder differs from it in the scale of latents.
    convert(folder / "tiny/vae_decoder", config("vae") | {"scaling_factor": 1.0},
            AutoencoderTiny.from_pretrained(tiny, **float32), lambda net, x: net.decode(x).sample, one, "sample")

    tokenizer = convert_tokenizer(CLIPTokenizer.from_pretrained(source / "tokenizer"))
    (folder / "tokenizer").mkdir()
    openvino.save_model(tokenizer, folder / "tokenizer/openvino_tokenizer.xml")
    for part in ("scheduler", "tokenizer"):
        shutil.copytree(source / part, folder / part, dirs_exist_ok=True)
    shutil.copy(source / "model_index.json", folder)
    share(folder)


def share(folder):
    """Links of what the model with the tiny decoder has in common with the other."""
    for part in ("model_index.json", "scheduler", "tokenizer", "text_encoder", "unet"):
        (folder / "tiny" / part).symlink_to(Path("..") / part)


if __name__ == "__main__":
    main()
