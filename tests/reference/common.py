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


def write_tensors(path, tensors, metadata):
    """Write a safetensors file with string metadata; what is not a string is written as JSON. The library writes the
    metadata in random order, this in sorted order, so that equal contents give equal files."""
    header = {"__metadata__": {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True)
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


def random_weight(name, shape, generator):
    """One random parameter, f32. Matrices keep the variance of what goes in; norms and biases are all different, so
    that a forgotten or swapped one shows. Nothing is zero."""
    x = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.2 * x if name.endswith("weight") else 0.1 * x
    if "token_embedding" in name:
        return x
    if "position_embedding" in name:
        return 0.3 * x
    fan_in = math.prod(shape[1:])
    # The last matrix of each residual branch is weaker, or deep stacks would grow.
    last = name.endswith(("conv2.weight", "to_out.0.weight", "out_proj.weight", "fc2.weight", "net.2.weight",
                          "proj_out.weight"))
    return x * ((0.6 if last else 1.0) / math.sqrt(fan_in))


def randomise(module, seed):
    """Give every parameter of a module its random weight, in the order of the sorted names."""
    generator = torch.Generator("cpu").manual_seed(seed)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name in sorted(parameters):
            parameters[name].copy_(random_weight(name, tuple(parameters[name].shape), generator))
    return module.eval()
