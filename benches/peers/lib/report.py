"""Results as one document of JSON, and that document as one table in Markdown."""

import json
from statistics import median

BASES = {"to_sdshard": "sdshard-f32", "to_openvino": "openvino-f32"}
TITLES = {
    "text_encoder": "text encoder, 2 texts", "unet": "UNet, {0}×{0}, batch of 2", "vae": "VAE decoder, {0}×{0}",
    "picture": "picture, {0}×{0}, 4 steps", "load": "load", "start": "start to a first picture of one step, {0}×{0}",
    "memory": "peak memory of the process, {0}×{0}",
}


def title(cell):
    name, *rest = cell.split()
    tiny = ", tiny decoder" if "tiny" in rest else ""
    return TITLES[name].format(rest[0] if rest else "") + tiny


def order(cell):
    name, *rest = cell.split()
    return list(TITLES).index(name), "tiny" in rest, [int(word) for word in rest if word.isdigit()]


def document(machine, settings, versions, results, missing):
    """`results`: for each peer `rounds`, a list of cell to values; `failed`, `checks` and `notes`, dicts of texts."""
    cells = sorted({cell for result in results.values() for found in result["rounds"] for cell in found}, key=order)
    figures = {cell: {name: figure for name, result in results.items()
                      if (figure := one(cell, result["rounds"], results))} for cell in cells}
    peers = {name: {key: result.get(key, {}) for key in ("failed", "checks", "notes")}
             for name, result in results.items()}
    return {"machine": machine, "settings": settings, "versions": versions, "missing": missing, "peers": peers,
            "figures": figures}


def one(cell, rounds, results):
    """The median of the rounds' medians, the spread of all values, and ratios: medians of each round's ratio."""
    values = [value for found in rounds for value in found.get(cell, [])]
    if not values:
        return None
    figure = {"median": median(median(found[cell]) for found in rounds if found.get(cell)),
              "min": min(values), "max": max(values), "values": len(values)}
    for key, base in BASES.items():
        others = results.get(base, {"rounds": []})["rounds"]
        ratios = [median(mine[cell]) / median(other[cell]) for mine, other in zip(rounds, others)
                  if mine.get(cell) and other.get(cell)]
        if ratios:
            figure[key] = median(ratios)
    return figure


def markdown(found):
    machine, settings = found["machine"], found["settings"]
    lines = [
        f"{machine['cpu']}; {machine['threads']} threads of {machine['cores']} cores; {', '.join(machine['flags'])};"
        f" {machine['memory_gib']} GiB; {machine['system']}; {machine['date']}; load before the run"
        f" {machine['load_average'][0]}.",
        f"{settings['model']}; rounds: {settings['rounds']}, calls of a component per round: {settings['repeat']},"
        f" pictures per round: {settings['pictures']}. Medians; ratios are this row's figure by that of the other.",
        "", "| | program | median | from – to | to sdshard f32 | to OpenVINO f32 | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell, rows in found["figures"].items():
        shown = show_bytes if cell.startswith("memory") else show_seconds
        by_speed = sorted(rows.items(), key=lambda row: row[1]["median"])
        for place, (name, figure) in enumerate(by_speed):
            ratios = " | ".join(f"{figure[key]:.2f}" if key in figure else "–" for key in BASES)
            lines.append(f"| {title(cell) if place == 0 else ''} | {name} | {shown(figure['median'])} |"
                         f" {shown(figure['min'])} – {shown(figure['max'])} | {ratios} |"
                         f" {show_check(found['peers'][name]['checks'].get(cell))} |")
    lines.append("")
    for name, peer in found["peers"].items():
        lines += [f"- **{name}**, {where}: failed: {reason}" for where, reason in peer["failed"].items()]
        lines += [f"- {name}: {text}" for text in sorted(set(peer["notes"].values()))]
    lines += [f"- **{name}**: missing: {reason}" for name, reason in found["missing"].items()]
    named = {name: version for packages in found["versions"].values() for name, version in packages.items()
             if name in NAMED}
    lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in sorted(named.items())))
    return "\n".join(lines) + "\n"


# The packages of which the table says the version; the JSON has all.
NAMED = ("torch", "torchao", "diffusers", "transformers", "openvino", "openvino-genai", "nncf",
         "stable_diffusion_cpp_python", "sdshard", "candle-core")


def show_seconds(value):
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def show_bytes(value):
    return f"{value / 2**30:.2f} GiB"


def show_check(value):
    return "" if value is None else value if isinstance(value, str) else f"{value:.1e}"


def write(folder, found):
    (folder / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "result.md").write_text(markdown(found))
