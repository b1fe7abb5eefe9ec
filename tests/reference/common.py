"""What the reference scripts share: where things lie, versions, random weights, writing goldens."""

import json
import math
from pathlib import Path

import diffusers
import numpy
import torch
import transformers

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
MODELS = GOLDEN.parent.parent / "models"

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def versions():
    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__,
            "numpy": numpy.__version__}


def plain_config(scheduler):
    """A scheduler's config without private keys, infinities (which JSON has not) as text."""
    return {k: str(v) if v in (math.inf, -math.inf) else v for k, v in scheduler.config.items() if k[0] != "_"}


def write_tensors(path, tensors, metadata):
    """Write a safetensors file with string metadata; what is not a string is written as JSON. The library writes the
    metadata in random order, this in sorted order, so that equal contents give equal files."""
    header = {"__metadata__": {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True, allow_nan=False)
                               for k, v in sorted(metadata.items())}}
    data = bytearray()
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        array = tensor.detach().contiguous().numpy()
        header[name] = {"dtype": {"float32": "F32", "int32": "I32", "uint8": "U8"}[str(array.dtype)],
                        "shape": list(array.shape), "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    Path(path).write_bytes(len(head).to_bytes(8, "little") + head + data)


def write_rows(path, head, lists):
    """Write JSON with one row a line, so that a difference shows as a line. `lists` maps a name to its rows."""
    parts = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=True)}" for k, v in head.items()]
    for name, rows in lists.items():
        body = ",\n".join("  " + json.dumps(r, ensure_ascii=True) for r in rows)
        parts.append(f"{json.dumps(name)}: [\n{body}\n]")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def f32(values):
    """Numbers rounded to f32, in the fewest digits that give the same f32 back (9 at most)."""
    flat = torch.as_tensor(values).to(torch.float32).flatten().numpy()
    return [float(str(v)) for v in flat]


# Parameters that write into a residual stream, and those that only add a bias to what is already of its size.
STREAM = ("conv_in.", "conv2.", "proj_in.", "to_out.0.", "net.2.", "fc2.", "out_proj.", "token_embedding.",
          "position_embedding.", "conv_shortcut.bias", "samplers.0.conv.bias", "proj_out.bias")
# The last matrix of each residual branch is weaker, or deep stacks would grow.
LAST = ("conv2.weight", "to_out.0.weight", "out_proj.weight", "fc2.weight", "net.2.weight", "proj_out.weight")


def random_weight(name, shape, generator, stream=1.0):
    """One random parameter, f32. Matrices keep the variance of what goes in; norms and biases are all different, so
    that a forgotten or swapped one shows. Nothing is zero. `stream` is the size of the residual streams: a small one
    makes the epsilons of the norms that read them visible (1e-5 taken for 1e-6 changes outputs by about 1%)."""
    x = torch.randn(shape, generator=generator)
    if any(part in name for part in STREAM):
        x = x * stream
    if len(shape) == 1:
        return 1 + 0.2 * x if name.endswith("weight") else 0.1 * x
    if "embedding.weight" in name:
        return x * (0.3 if "position" in name else 1.0)
    return x * ((0.6 if name.endswith(LAST) else 1.0) / math.sqrt(math.prod(shape[1:])))


def randomise(module, seed, stream):
    """Give every parameter of a module its random weight, in the order of the sorted names."""
    generator = torch.Generator("cpu").manual_seed(seed)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in sorted(parameters):
            parameters[name].copy_(random_weight(name, tuple(parameters[name].shape), generator, stream))
    return module.eval()
