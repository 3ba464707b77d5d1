"""mmseg and mmdet in one environment. What imports them runs in processes of its own, as detectron2 must stay apart."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSIDE = Path(__file__).with_name("mmcv_operations.py")
# Not importlib.util.find_spec: a test module that imports mmseg hides mmdet from it.
pytestmark = pytest.mark.skipif(PathFinder.find_spec("mmdet") is None, reason="mmdet is not installed: bash setup.sh")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def script(text: str) -> list[str]:
    """Run Python; return the lines that it prints."""
    done = python("-c", text)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_stand_in_for_mmcvs_operations() -> None:
    """Run the tests of the file that imports mmcv.ops."""
    done = python("-m", "pytest", str(INSIDE), "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("order", ["mmseg first", "mmdet first"])
def test_mmseg_and_mmdet_import_in_one_process(order: str) -> None:
    steps = ["print(prepare_mmseg()); import mmseg.models", "print(prepare_mmdet()); import mmdet.models, mmcv.ops"]
    lines = script(
        "import sys, importlib.util; from common.openmmlab import prepare_mmdet, prepare_mmseg\n"
        "print('mmcv' if importlib.util.find_spec('mmcv._ext') else 'torchvision')\n"
        + "\n".join(steps if order == "mmseg first" else steps[::-1])
        + "\nimport mmcv; print(mmcv.__version__, mmdet.mmcv_version[:3], 'detectron2.config' in sys.modules)"
    )
    assert lines == [lines[0]] * 3 + ["2.3.6 (2, 3, 6) False"]


def test_mmseg_alone_loads_nothing_of_mmdet() -> None:
    text = (
        "import sys; import transfer.segmentation, mmseg.models\n"
        "print([name for name in sys.modules if name.startswith('mmdet.')])"
    )
    assert script(text) == ["[]"]


def test_compiled_operations_are_not_replaced(tmp_path: Path) -> None:
    """Where mmcv has its compiled module, as a user may have built it, that is the one used."""
    text = f"""
import sys, mmcv
open({str(tmp_path / "_ext.py")!r}, "w").write("def __getattr__(name): return lambda *a, **k: name")
mmcv.__path__.append({str(tmp_path)!r})
from common.openmmlab import prepare_mmdet, mmcv_ext
print(prepare_mmdet())
import mmcv.ops
print(sys.modules["mmcv.ops.nms"].ext_module.nms())
print("mmcv._ext" in sys.modules and sys.modules["mmcv._ext"] is not mmcv_ext)
"""
    assert script(text) == ["mmcv", "nms", "True"]


def test_detectron2_and_mmdet_do_not_share_a_process() -> None:
    lines = script("""
import sys, types
from common.openmmlab import prepare_mmdet
sys.modules["detectron2"] = types.ModuleType("detectron2")
try:
    prepare_mmdet()
except ValueError as error:
    print(error)
""")
    assert lines == ["detectron2 is loaded in this process: use mmdet in another"]


def test_a_failed_import_of_mmdet_leaves_mmcvs_version_alone() -> None:
    lines = script("""
import sys
from common.openmmlab import prepare_mmdet
sys.modules["mmdet.version"] = None
try:
    prepare_mmdet()
except ImportError:
    import mmcv
    print(mmcv.__version__, sys.modules.get("mmdet"))
""")
    assert lines == ["2.3.6 None"]
