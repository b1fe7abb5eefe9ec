"""Which machine measured."""

import datetime
import os
import platform
from pathlib import Path

# The instructions that decide how fast such programs are.
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8",
         "amx_bf16")


def describe(threads):
    facts = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    have = set(facts.get("flags", "").split())
    return {
        "cpu": f"{facts.get('model name', platform.machine())}, family {facts.get('cpu family', '?')}"
               f" model {facts.get('model', '?')}",
        "cores": os.cpu_count(), "threads": threads, "flags": [flag for flag in FLAGS if flag in have],
        "memory_gib": round(memory / 2**30, 1), "system": platform.platform(), "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
    }
