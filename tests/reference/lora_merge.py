"""tests/golden/lora_merge.json: what adapters of LoRA files add to weights, by the formulas in f64 with NumPy's einsum and
kron, which share no code with the program. Tensors are small, random, and rounded to eighths, so that they are short."""

import numpy as np

from common import GOLDEN, f32, versions, write_rows

rng = np.random.default_rng(7)
STRENGTH = 0.75


def draw(*shape):
    return np.round(rng.normal(size=shape) * 8) / 8


def flat(matrix):
    return matrix.reshape(matrix.shape[0], -1)


def dora(weight, product, magnitude, axis):
    """The weight at strength 1: `axis` is that of the magnitudes."""
    v = weight + product
    norm = np.sqrt((v ** 2).sum(axis=tuple(i for i in range(v.ndim) if i != axis), keepdims=True))
    return v / norm * magnitude.reshape(norm.shape)


def cases():
    """Name, tensors of the file, weight, and the difference at strength 1 (or `STRENGTH` for PEFT's DoRA)."""
    down, up = draw(2, 6), draw(4, 2)
    yield "linear", {"lora_down.weight": down, "lora_up.weight": up, "alpha": np.array(1.0)}, (4, 6), up @ down / 2
    yield "no alpha", {"lora_A.weight": down, "lora_B.weight": up}, (4, 6), up @ down
    yield "alpha 0", {"lora_down.weight": down, "lora_up.weight": up, "alpha": np.array(0.0)}, (4, 6), up @ down
    yield "linear on 1x1", {"lora_down.weight": down, "lora_up.weight": up}, (4, 6, 1, 1), (up @ down)[..., None, None]
    down, up = draw(3, 2, 3, 3), draw(4, 3, 1, 1)
    yield ("conv", {"lora_down.weight": down, "lora_up.weight": up, "alpha": np.array(6.0)}, (4, 2, 3, 3),
           2 * np.einsum("ok,kiyx->oiyx", up[:, :, 0, 0], down))
    down, mid, up = draw(3, 2, 1, 1), draw(5, 3, 3, 2), draw(4, 5, 1, 1)
    yield ("conv, Tucker", {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up,
                            "alpha": np.array(1.5)}, (4, 2, 3, 2),
           np.einsum("oa,abyx,bi->oiyx", up[:, :, 0, 0], mid, down[:, :, 0, 0]) / 2)
    a, b, c, d = draw(4, 2), draw(2, 18), draw(4, 2), draw(2, 18)
    yield ("LoHa", {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": np.array(1.0)},
           (4, 2, 3, 3), (a @ b * (c @ d)).reshape(4, 2, 3, 3) / 2)
    t1, t2, a, b, c, d = draw(2, 2, 3, 3), draw(2, 2, 3, 3), draw(2, 4), draw(2, 3), draw(2, 4), draw(2, 3)
    part = lambda t, a, b: np.einsum("abyx,ao,bi->oiyx", t, a, b)
    yield ("LoHa, Tucker", {"hada_t1": t1, "hada_t2": t2, "hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c,
                            "hada_w2_b": d, "alpha": np.array(4.0)}, (4, 3, 3, 3),
           2 * part(t1, a, b) * part(t2, c, d))
    one, two = draw(2, 3), draw(3, 2)
    low = {"a": draw(2, 2), "b": draw(2, 3)}
    high = {"a": draw(3, 2), "b": draw(2, 2)}
    yield "LoKr, whole", {"lokr_w1": one, "lokr_w2": two, "alpha": np.array(8.0)}, (6, 6), np.kron(one, two)
    yield ("LoKr, second divided", {"lokr_w1": one, "lokr_w2_a": high["a"], "lokr_w2_b": high["b"],
                                    "alpha": np.array(8.0)}, (6, 6), 4 * np.kron(one, high["a"] @ high["b"]))
    yield ("LoKr, first divided", {"lokr_w1_a": low["a"], "lokr_w1_b": low["b"], "lokr_w2": two,
                                   "alpha": np.array(1.0)}, (6, 6), np.kron(low["a"] @ low["b"], two) / 2)
    yield ("LoKr, both divided", {"lokr_w1_a": low["a"], "lokr_w1_b": low["b"], "lokr_w2_a": high["a"],
                                  "lokr_w2_b": high["b"], "alpha": np.array(1.0)}, (6, 6),
           np.kron(low["a"] @ low["b"], high["a"] @ high["b"]) / 2)
    conv = draw(3, 2, 3, 3)
    yield "LoKr, conv", {"lokr_w1": one, "lokr_w2": conv}, (6, 6, 3, 3), np.kron(one[..., None, None], conv)
    a, b = draw(3, 2), draw(2, 18)
    yield ("LoKr, conv divided", {"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": np.array(2.0)}, (6, 6, 3, 3),
           np.kron(one[..., None, None], (a @ b).reshape(3, 2, 3, 3)))
    core, a, b = draw(2, 2, 3, 3), draw(2, 3), draw(2, 2)
    yield ("LoKr, Tucker", {"lokr_w1": one, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": np.array(2.0)},
           (6, 6, 3, 3), np.kron(one[..., None, None], part(core, a, b)))
    weight, factors = draw(3, 4), draw(4)
    yield "IA3 of inputs", {"weight": factors, "on_input": np.array(1.0)}, weight, weight * factors
    weight, factors = draw(3, 2, 3, 3), draw(1, 3, 1, 1)
    yield ("IA3 of outputs", {"weight": factors, "on_input": np.array(0.0)}, weight,
           weight * factors.reshape(3, 1, 1, 1))
    diff = draw(3, 4)
    yield "difference", {"diff": diff}, (3, 4), diff
    diff = draw(5)
    yield "norm", {"w_norm": diff}, (5,), diff
    for shape, kernel in ((3, 4), ()), ((3, 4, 3, 3), (3, 3)):
        weight, down, up = draw(*shape), draw(2, 4, *kernel), draw(3, 2, *(1 for _ in kernel))
        product = (flat(up) @ flat(down)).reshape(shape)
        file = {"lora_down.weight": down, "lora_up.weight": up, "alpha": np.array(1.0)}
        ones = [1] * len(kernel)
        magnitude = np.abs(draw(3)) + 1
        yield (f"DoRA of rows, {len(shape)}", file | {"dora_scale": magnitude.reshape(3, 1, *ones)}, weight,
               dora(weight, product / 2, magnitude, 0) - weight)
        peft = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": magnitude.reshape(
            [1, 3, *ones] if kernel else [3])}
        yield (f"DoRA of PEFT, {len(shape)}", peft, weight,
               (dora(weight, STRENGTH * product, magnitude, 0) - weight) / STRENGTH)
        magnitude = np.abs(draw(4)) + 1
        yield (f"DoRA of columns, {len(shape)}", file | {"dora_scale": magnitude.reshape(1, 4, *ones)}, weight,
               dora(weight, product / 2, magnitude, 1) - weight)


def tensor(values):
    return {"shape": list(values.shape), "values": f32(values)}


def main():
    rows = []
    for name, tensors, weight, difference in cases():
        weight = draw(*weight) if isinstance(weight, tuple) else weight
        assert weight.shape == difference.shape, name
        rows.append({"case": name, "tensors": {key: tensor(value) for key, value in tensors.items()},
                     "weight": tensor(weight), "difference": f32(STRENGTH * difference)})
    write_rows(GOLDEN / "lora_merge.json", {"versions": versions(), "strength": STRENGTH}, {"rows": rows})


if __name__ == "__main__":
    main()
