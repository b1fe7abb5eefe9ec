"""Runs one worker: a process of its own with a time limit, whose figures are lines of JSON in a file."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lib.environments import HERE, failure


@dataclass(frozen=True)
class Plan:
    folder: Path
    program: Path
    threads: int
    repeat: int
    pictures: int
    timeout: float


def measure(plan, models, environments, peer, turn, size, decoder, result):
    """Adds figures to the last of `result["rounds"]`. What fails is noted in `result["failed"]`."""
    if decoder not in peer.decoders:
        return
    name = f"{peer.name}-{size}-{decoder}"
    print(f"round {turn + 1}: {peer.name}, {size}x{size}, {decoder} decoder", file=sys.stderr)
    lines, log = plan.folder / "figures.jsonl", environments.logs / f"{name}.txt"
    lines.unlink(missing_ok=True)
    task = {
        "out": lines, "model": models.model, "tiny": models.tiny, "models": models.folder,
        "inputs_folder": models.inputs(size), "work": plan.folder / "work", "program": plan.program,
        "candle": environments.folder / "candle/build/release/peer-candle",
        "size": size, "decoder": decoder, "threads": plan.threads, "exact": peer.exact,
        "repeat": plan.repeat, "pictures": plan.pictures, "options": peer.options, "started": time.time(),
    }
    command = [environments.python(peer.environment), HERE / f"workers/{peer.worker}.py", json.dumps(task, default=str)]
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=variables(plan),
                                   preexec_fn=lambda: os.sched_setaffinity(0, cores(plan.threads)),
                                   start_new_session=True)
        try:
            code = process.wait(plan.timeout)
            reason = None
            if code:
                reason = f"ended by {signal.Signals(-code).name}" if code < 0 else failure(log)
        except subprocess.TimeoutExpired:
            reason = f"not finished after {plan.timeout:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the programs that it has started
                process.wait()
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    figures = result["rounds"][-1]
    for line in found:
        if "cell" in line:
            figures.setdefault(line["cell"], []).extend(line["values"])
        else:
            result.setdefault(line["kind"], {})[line["name"]] = line["value"]
    if reason:
        result["failed"][f"{size}x{size}, {decoder} decoder"] = reason
        print(f"    failed: {reason}", file=sys.stderr)


def cores(threads):
    return sorted(os.sched_getaffinity(0))[:threads]


def variables(plan):
    threads = {name: str(plan.threads) for name in
               ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "SDSHARD_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return os.environ | threads | offline | {"TORCHINDUCTOR_CACHE_DIR": str(plan.folder / "inductor")}
