"""Commands where something usual is missing: streams, a home, a passwd entry, UTF-8, cores, a plain git checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import common
from common import distributed, run_folder, surroundings

ROOT = Path(__file__).parents[2]
ENTRIES = {
    "pretrain": ["-m", "pretrain.train"], "convert": ["converters/convert.py"], "study": ["-m", "results.study"],
    "tables": ["results/tables.py"], **{name: [f"transfer/{name}.py"] for name in ("knn", "linear", "finetune", "svm")},
    "detect": ["transfer/detect.py"], "segment": ["transfer/segment.py"],
}  # fmt: skip
EVERY = [
    pytest.param(
        name,
        marks=[
            pytest.mark.fault("surroundings", name, "a user without HOME and passwd entry"),
            *[pytest.mark.nightly] * (name not in ("knn", "pretrain", "segment")),
        ],
    )
    for name in ENTRIES
]
EVERY_WAITING = [
    pytest.param(name, marks=[pytest.mark.nightly] * (name not in ("pretrain", "knn"))) for name in ENTRIES
]
# A user of that number without any rights but to read, as in `docker run --user 12345` with the project mounted.
NOBODY = (
    "setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
)  # fmt: skip


def run(*words: str, prefix: tuple[str, ...] = (), env: dict[str, str] | None = None, **how: Any) -> Any:
    """Run Python from the project's folder, by default with the environment of the tests."""
    given = {"capture_output": True, "text": True} | how
    environment = (os.environ if env is None else env) | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*prefix, sys.executable, *words], cwd=ROOT, env=environment, timeout=200, **given)


def small(name: str, out: Path, data: Path) -> list[str]:
    """Return a command that plans, or works for seconds."""
    plan = ["--ckpt=random:resnet18", "--dry-run", "--records", str(out / "records")]
    images = ["--data", str(data), "--size=32", "--device=cpu"]
    scenes = ["--data-root", str(data), "--device=cpu", "--task"]
    more = {
        "pretrain": ["--recipe=my_folder", f"--data.train={data / 'none'}", f"--runs={out}"],
        "knn": [*plan, *images, "--k=1"], "linear": [*plan, *images], "finetune": [*plan, *images],
        "svm": [*plan, *images], "detect": [*plan, *scenes, "fashion-fpn"], "segment": [*plan, *scenes, "fashion-fcn"],
        "convert": ["random:resnet18", "--to=timm", f"--out={out / 'a.safetensors'}"],
        "study": ["--dry-run", "--only=knn"], "tables": ["--records", str(ROOT / "results/records"), f"--out={out}"],
    }  # fmt: skip
    return [*ENTRIES[name], *more[name]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two grey images, for training and test."""
    root = tmp_path_factory.mktemp("data")
    photo = next((ROOT / "results" / "pictures").glob("*.jpg"))
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (root / folder).mkdir(parents=True)
        for name in ("0.jpg", "1.jpg"):
            shutil.copy(photo, root / folder / name)
    root.chmod(0o755)
    return root


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="becomes another user")
@pytest.mark.parametrize("command", EVERY)
def test_a_user_without_home(command: str, data: Path, tmp_path: Path) -> None:
    """It works, or a line says what cannot be done; no library ends in a traceback."""
    (tmp_path / "tmp").mkdir()
    for folder in (tmp_path, tmp_path / "tmp"):
        os.chown(folder, 12345, 12345)
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}
    words = small(command, tmp_path, data)
    probe = subprocess.run([*NOBODY, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this container has no such capability")
    done = run(*words, prefix=NOBODY, env=env)
    assert "Traceback" not in done.stderr
    if command == "pretrain" or (command == "study" and done.returncode):  # which may not write beside the project
        message = "Permission denied: " if command == "study" else "none"
        assert done.returncode == 2
        assert re.fullmatch(f"{command}: error: .*{message}.*", done.stderr.splitlines()[-1])
    else:
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "tmp" / "home-of-12345").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="becomes another user")
def test_a_user_without_a_name() -> None:
    """torch 2.11 asks at its import."""
    if subprocess.run([*NOBODY, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this container has no such capability")
    code = "import getpass; from common.cli import run_cli; run_cli('it', lambda: print(getpass.getuser()))"
    done = run("-c", code, prefix=NOBODY, env={"PATH": os.environ["PATH"]})
    assert done.stdout == "12345\n", done.stderr


PRINTS = "import sys; from common.cli import run_cli; sys.exit(run_cli('it', lambda: print(sys.argv[1] * 99999)))"
# The error comes at the end, when the buffer is written; or at once.
TEXT = pytest.mark.parametrize(("text", "unbuffered"), [("", ""), ("x", ""), ("", "1")])


@pytest.mark.fault("surroundings", "tables", "the reader of the output ends, as in `| head`")
@TEXT
def test_output_that_nobody_reads_ends_a_command_quietly(text: str, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = run("-c", PRINTS, text, env=env, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.fault("surroundings", "tables", "output to a full disk")
@TEXT
def test_output_to_a_full_disk_is_one_line(text: str, unbuffered: str) -> None:
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = run("-c", PRINTS, text, env=env, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, "it: error: standard output: No space left on device\n")


@pytest.mark.fault("surroundings", "tables", "stdin, stdout and stderr are closed")
def test_closed_streams_are_not_the_next_file(tmp_path: Path) -> None:
    """A file that is opened next would get what is printed, by us or by a library that writes to stream 1."""
    code = (
        "import os, sys; from common.cli import run_cli\n"
        "def work():\n"
        f"    file = open({str(tmp_path / 'file')!r}, 'w'); print('printed'); print('told', file=sys.stderr)\n"
        "    os.write(1, b'by a library'); file.write('mine')\n"
        "sys.exit(run_cli('it', work))"
    )
    (tmp_path / "code.py").write_text(code)
    shell = f"{sys.executable} {tmp_path / 'code.py'} <&- >&- 2>&-"
    done = subprocess.run(shell, shell=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "mine"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            name,
            marks=[
                pytest.mark.fault("surroundings", name, "an ASCII locale and a path that is not ASCII"),
                *[pytest.mark.nightly] * (name in ("knn", "convert")),
            ],
        )
        for name in ("knn", "svm", "convert", "tables")
    ],
)
def test_an_ascii_locale(command: str, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "größe “q”"
    shutil.copytree(data, folder / "data")
    done = run(*small(command, folder, folder / "data"), env=os.environ | ASCII)
    assert done.returncode == 0, done.stderr
    if command in ("convert", "tables"):
        assert list(folder.glob("*.*"))
        assert r"gr\xf6\xdfe \u201cq\u201d" in done.stdout


@pytest.mark.fault("surroundings", "pretrain", "RANK is set without what torchrun sets besides it")
@pytest.mark.fault("surroundings", "knn", "RANK is set without what torchrun sets besides it")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "0"}, "RANK is set and LOCAL_RANK, WORLD_SIZE, MASTER_PORT, MASTER_ADDR not: start it with torchrun"),
        (
            {"RANK": "0", "LOCAL_RANK": "x", "WORLD_SIZE": "", "MASTER_PORT": "1", "MASTER_ADDR": "localhost"},
            "LOCAL_RANK=x, WORLD_SIZE=: not a number: start it with torchrun, or unset RANK",
        ),
    ],
)
def test_half_a_process_group_is_refused(given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.start("cpu")


LIMITS = {"cpu.max": "150000 100000\n", "cpu/cpu.cfs_quota_us": "150000\n"}  # 1.5 cores; by version 2 and 1


@pytest.mark.fault("surroundings", "pretrain", "a container with fewer cores than the machine (docker --cpus)")
@pytest.mark.fault("surroundings", "detect", "a container with fewer cores than the machine (docker --cpus)")
@pytest.mark.parametrize("limit", ["100000", "50000"])
def test_a_container_limits_the_threads(limit: str, tmp_path: Path) -> None:
    """The limit of a control group is mounted over that of this machine."""
    file = next((f"/sys/fs/cgroup/{name}" for name in LIMITS if os.path.exists(f"/sys/fs/cgroup/{name}")), None)
    unshare = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if file is None or unshare.returncode or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores, control groups, and the right to mount")
    (tmp_path / "limit").write_text(f"{limit} 100000\n" if file.endswith("max") else f"{limit}\n")
    code = (
        "import torch; from common.distributed import start; from common.surroundings import cores; start('cpu');"
        "print(cores(), torch.get_num_threads())"
    )
    prefix = ("unshare", "--mount", "sh", "-c", f'mount --bind {tmp_path / "limit"} {file} && exec "$@"', "sh")
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = run("-c", code, prefix=prefix, env=env)
    assert done.stdout.split() == ["1", "1"], done.stderr
    assert run("-c", code, prefix=prefix, env=env | {"OMP_NUM_THREADS": "2"}).stdout.split() == ["1", "2"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout in which the module believes to lie."""
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "run_folder.py").write_text("")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "c"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "common" / "run_folder.py"))
    return tmp_path


@pytest.mark.fault("surroundings", "pretrain", "the checkout belongs to another user (git: dubious ownership)")
@pytest.mark.skipif(os.geteuid() != 0, reason="changes the owner of files")
def test_the_commit_of_a_checkout_of_another_user(checkout: Path) -> None:
    before = run_folder.git_state()
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 12345, 12345)
    assert subprocess.run(["git", "status"], cwd=checkout, capture_output=True, check=False).returncode == 128
    assert run_folder.git_state() == before
    assert len(before["git_commit"]) == 40


@pytest.mark.fault("surroundings", "pretrain", "GIT_DIR names another repository, as in a hook")
def test_the_commit_is_that_of_the_code(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_folder.git_state()
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))
    assert run_folder.git_state() == before


@pytest.mark.fault("surroundings", "pretrain", "a copy without .git inside another repository")
def test_a_copy_inside_another_repository_has_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = checkout / "copy"
    shutil.copytree(checkout / "common", copy)
    monkeypatch.setattr(run_folder, "__file__", str(copy / "run_folder.py"))
    assert run_folder.git_state() == {"git_commit": None, "git_dirty": None}


def test_the_home_of_another_user_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.setattr(surroundings.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(ValueError, match="home-of-4711: it belongs to another user; set HOME"):
        surroundings.prepare()


@pytest.mark.parametrize("command", EVERY_WAITING)
def test_threads_that_wait_try_for_a_short_time(command: str) -> None:
    """libgomp, when torch loads it, has the setting of common/__init__.py, which a command imports first."""
    env = {name: value for name, value in os.environ.items() if name not in (*common.WAITING, "OMP_WAIT_POLICY")}
    module = ENTRIES[command][-1].removesuffix(".py").replace("/", ".")
    done = run("-c", f"import {module}, torch", env=env | {"OMP_DISPLAY_ENV": "verbose"})
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {common.WAITING["GOMP_SPINCOUNT"]}


@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_the_users_own_way_of_waiting_stays(own: dict[str, str]) -> None:
    env = {name: value for name, value in os.environ.items() if name not in (*common.WAITING, "OMP_WAIT_POLICY")}
    code = "import os, common; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    printed = run("-c", code, env=env | own).stdout.split()
    assert printed == [own.get("GOMP_SPINCOUNT", "None"), own.get("OMP_WAIT_POLICY", "None")]
