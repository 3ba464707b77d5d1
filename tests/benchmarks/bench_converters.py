"""Converting a checkpoint of 1 GB against torch.load + torch.save of it: time and peak memory.

python tests/benchmarks/bench_converters.py [--gigabytes 1.0] [--folder DIR]

Each act runs three times in a fresh process of its own, in turns; the fastest run counts, as the file is in the
page cache either way. Peak memory is what the act added to the process, Linux's VmHWM less VmRSS before it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from tests.converters.samples import SAMPLES, write

ACTS = {
    "torch.load + torch.save": "torch.save(torch.load(path, weights_only=True), out + '.pth')",
    "to detectron2": "conversion.convert(path, 'detectron2', out + '.pkl', check='no')",
    "to OpenMMLab": "conversion.convert(path, 'openmmlab', out + '.pth', check='no')",
    "to torchvision": "conversion.convert(path, 'torchvision', out + '.pth', check='no')",
    "to timm": "conversion.convert(path, 'timm', out + '.safetensors', check='no')",
}
CHILD = """
import json, re, sys, time, torch, torchvision, timm
from converters import arch, conversion
path, out = sys.argv[1:]
arch.expected("resnet50"), convert.TARGETS["timm"].builds("resnet50")  # both cached, and no part of the file's cost
def memory(field):
    with open("/proc/self/status") as file:
        return int(re.search(field + r":\\s+(\\d+)", file.read()).group(1)) * 1024
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak of the imports
before, start = memory("VmRSS"), time.perf_counter()
{act}
print(json.dumps([time.perf_counter() - start, memory("VmHWM") - before]))
"""


def make(path: Path, size: int) -> None:
    """Write a MoCo checkpoint of a ResNet-50 with its optimiser, as large as asked for."""
    write(SAMPLES["UniMoCo"], "resnet50", path)
    content = torch.load(path, weights_only=True)
    rest = max(0, size - path.stat().st_size) // 4
    piece = 2_000_000  # the largest momentum buffers of a ResNet-50 have this size
    content["optimizer"] = {"state": {n: {"momentum_buffer": torch.randn(piece)} for n in range(rest // piece)}}
    torch.save(content, path)


def measure(act: str, path: Path, folder: Path) -> tuple[float, int]:
    """Run one act in a process of its own; return its seconds and bytes."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-c", CHILD.replace("{act}", act), str(path), f"{out}/out"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the checkpoint")
    parser.add_argument("--folder", type=Path, help="where to write it; a temporary folder if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / "checkpoint_0199.pth.tar"
        make(path, int(options.gigabytes * 1e9))
        runs = [{act: measure(code, path, Path(name)) for act, code in ACTS.items()} for _ in range(3)]
        print(f"{path.stat().st_size / 1e9:.2f} GB")
    base = min(run["torch.load + torch.save"][0] for run in runs)
    print(f"{'':26}{'seconds':>8}{'spread':>8}{'ratio':>7}{'peak MB':>9}")
    for act in ACTS:
        times = [run[act][0] for run in runs]
        peak = max(run[act][1] for run in runs) / 1e6
        spread = statistics.stdev(times)
        print(f"{act:26}{min(times):8.2f}{spread:8.2f}{min(times) / base:7.2f}{peak:9.0f}")


if __name__ == "__main__":
    main()
