import subprocess
from pathlib import Path

import pytest

from common import run_folder


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout that the module believes to lie in."""
    code, made = ("pretrain/run_folder.py", "results/tables.py"), ("results/records/knn.jsonl", "README.md")
    collected = ("results/curves/desk_r1_s0.jsonl", "results/pictures/desk_r1_s0_fashion-fpn.jpg")
    for name in (*code, *made, *collected):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as committed\n")
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "start")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "pretrain" / "run_folder.py"))
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "dirty"),
    [
        ("results/records/knn.jsonl", False),
        ("results/curves/desk_r1_s0.jsonl", False),
        ("results/pictures/desk_r1_s0_fashion-fpn.jpg", False),
        ("README.md", False),
        ("results/tables.py", True),
        ("pretrain/run_folder.py", True),
    ],
)
def test_dirty_means_changed_code_and_not_new_records(checkout: Path, changed: str, dirty: bool) -> None:
    before = run_folder.git_state()
    assert len(before["git_commit"]) == 40
    assert before["git_dirty"] is False
    (checkout / changed).write_text("changed\n")
    assert run_folder.git_state() == {**before, "git_dirty": dirty}
