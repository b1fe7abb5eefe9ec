"""Quantises weights and activations of OpenVINO's networks to int8 after training, with NNCF: FOLDER NEW_FOLDER
Activations are measured on latents of 32x32, from noise at eight timesteps."""

import gc
import shutil
import sys
from pathlib import Path

import nncf
import numpy
import openvino

from prepare_openvino import share


def samples():
    """Inputs of each network."""
    draw = numpy.random.default_rng(8)
    normal = lambda *shape: draw.standard_normal(shape, dtype=numpy.float32)
    ids = draw.integers(0, 40000, (8, 2, 77))
    ids[:, :, 0], ids[:, :, 60:] = 49406, 49407
    return {
        "text_encoder": [{"input_ids": pair} for pair in ids],
        "unet": lambda features: [
            {"sample": normal(2, 4, 32, 32), "timestep": numpy.array([timestep]), "encoder_hidden_states": features[i]}
            for i, timestep in enumerate(range(1, 1000, 125))],
        "vae_decoder": [{"latent_sample": 5 * normal(1, 4, 32, 32)} for _ in range(8)],
        "tiny/vae_decoder": [{"latent_sample": normal(1, 4, 32, 32)} for _ in range(8)],
    }


def main():
    source, folder = map(Path, sys.argv[1:])
    core, features = openvino.Core(), None
    for part, inputs in samples().items():
        model = core.read_model(source / part / "openvino_model.xml")
        if part == "text_encoder":
            encoder = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            features = [encoder(pair)[0] for pair in inputs]
        if part == "unet":
            inputs = inputs(features)
        quantised = nncf.quantize(model, nncf.Dataset(inputs), subset_size=len(inputs),
                                  model_type=nncf.ModelType.TRANSFORMER)
        (folder / part).mkdir(parents=True)
        openvino.save_model(quantised, folder / part / "openvino_model.xml", compress_to_fp16=False)
        shutil.copy(source / part / "config.json", folder / part)
        del model, quantised
        gc.collect()
    for part in ("scheduler", "tokenizer"):
        shutil.copytree(source / part, folder / part)
    shutil.copy(source / "model_index.json", folder)
    share(folder)


if __name__ == "__main__":
    main()
