"""tests/golden/noise.json: what torch.randn draws from CPU generators."""

import torch

from common import GOLDEN, f32, versions, write_rows


def generator(seed):
    return torch.Generator("cpu").manual_seed(seed)


def single(seed, n):
    x = torch.randn(n, generator=generator(seed))
    row = {"seed": str(seed), "n": n}
    if n <= 20:
        return row | {"values": f32(x)}
    return row | {"first": f32(x[:8]), "last": f32(x[-8:]), "mean": x.double().mean().item(),
                  "std": x.double().std().item()}


def consecutive(seed, sizes):
    """Several calls on one generator. A call for fewer than 16 values leaves one spare behind, which the next such
    call starts with, whatever large calls stand between."""
    g = generator(seed)
    calls = [torch.randn(n, generator=g) for n in sizes]
    shown = [{"values": f32(x)} if len(x) <= 20 else {"first": f32(x[:8]), "last": f32(x[-8:])} for x in calls]
    return {"seed": str(seed), "calls": [{"n": n} | s for n, s in zip(sizes, shown)]}


def main():
    about = {"versions": versions(),
             "note": "seeds are decimal strings (u64); mean and std (n - 1) in f64; values within 1e-6"}
    seeds = (0, 42, 2**32 + 5, 5, 2**63, 2**64 - 1)
    singles = [single(s, n) for s in seeds for n in (1, 3, 15, 16, 17, 20, 1000)]
    singles += [single(s, n) for s in (0, 42) for n in (16384, 4 * 65 * 65, 4 * 125 * 125)]
    calls = [consecutive(0, sizes) for sizes in ([3, 3], [3, 16, 3], [1] * 5, [15, 20, 7, 1000, 2])]
    # Latents of a 96x64 picture, then the noise of ancestral steps.
    calls += [consecutive(7, [384] * 4), consecutive(42, [16384] * 3), consecutive(42, [4 * 65 * 65] * 3)]
    write_rows(GOLDEN / "noise.json", about, {"single": singles, "consecutive": calls})


if __name__ == "__main__":
    main()
