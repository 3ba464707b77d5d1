"""What pre-training, converters and benchmarks share. Every command imports it before any other package."""

import importlib.util
import sys

NEEDED = ("torch", "timm", "cv2", "jsonargparse")

_missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    print(
        f"error: {sys.executable} has no {', '.join(_missing)}: activate the project's environment "
        "(source .venv/bin/activate, or conda activate), or make it (bash setup.sh)",
        file=sys.stderr,
    )
    sys.exit(2)
