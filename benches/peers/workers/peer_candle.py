"""candle: a program of our own around its published library (../candle), whose outputs are compared here."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy

from common import GUIDANCE, STEPS, TIMESTEP, Task


def main():
    task = Task()
    with tempfile.TemporaryDirectory(dir=task.work) as folder:
        outputs = Path(folder) / "outputs.npz"
        more = {"steps": STEPS, "guidance": GUIDANCE, "timestep": TIMESTEP, "outputs": str(outputs)}
        ran = subprocess.run([task.candle, json.dumps(json.loads(sys.argv[1]) | more)])
        if ran.returncode:
            sys.exit(ran.returncode)
        for name, found in numpy.load(outputs).items():
            task.check(name, found)


if __name__ == "__main__":
    main()
