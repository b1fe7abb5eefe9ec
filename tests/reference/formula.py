"""Weights by a formula that `tests/common/formula.rs` has too, so that goldens of a model need no stored weights.

Value i of a tensor is made from a hash of the tensor's name and i (splitmix64), is uniform with deviation 1, and is then
scaled by the rules of `common.random_weight`. All arithmetic is f64 in this order; the result is rounded to f32.
"""

import json
import math

import numpy
import torch

from common import LAST, STREAM

STREAM_SIZE = 0.03


def fnv(text):
    """FNV-1a, 64 bits."""
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = ((state ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return state


def uniform(name, count):
    """Numbers from -sqrt(3) to sqrt(3), f64."""
    z = numpy.uint64(fnv(name)) + (numpy.arange(count, dtype=numpy.uint64) + numpy.uint64(1)) * numpy.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    z = z ^ (z >> numpy.uint64(31))
    return ((z >> numpy.uint64(11)).astype(numpy.float64) * 2.0**-53 * 2.0 - 1.0) * math.sqrt(3)


def weight(component, name, shape, factor=1.0):
    """One tensor of a component, f32."""
    x = uniform(f"{component}/{name}", math.prod(shape))
    if any(part in name for part in STREAM):
        x = x * STREAM_SIZE
    if len(shape) == 1:
        x = 1 + 0.2 * x if name.endswith("weight") else 0.1 * x
    elif "embedding.weight" in name:
        x = x * (0.3 if "position" in name else 1.0)
    else:
        x = x * ((0.6 if name.endswith(LAST) else 1.0) / math.sqrt(math.prod(shape[1:])))
    return torch.from_numpy((x * factor).astype(numpy.float32)).reshape(shape)


def fill(module, component, factors=None):
    """Give every parameter of a module its weight."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(weight(component, name, tuple(parameter.shape), (factors or {}).get(name, 1.0)))
    return module.eval()


def describe(module, factors=None):
    """What the Rust side needs to make the same tensors."""
    tensors = {name: list(parameter.shape) for name, parameter in module.named_parameters()}
    return {"factors": factors or {}, "tensors": tensors}


def write_description(path, components):
    """Write the descriptions of components, with one tensor a line."""
    parts = []
    for name, about in components.items():
        rows = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in about["tensors"].items())
        parts.append(f'  {json.dumps(name)}: {{"factors": {json.dumps(about["factors"])}, "tensors": {{\n{rows}\n  }}}}')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
