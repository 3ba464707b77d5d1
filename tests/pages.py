"""The commands and the Python code on the pages in docs/, which the tests run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
CONVERTERS, OWN_DATA = DOCS / "converters.md", DOCS / "own_data.md"


def documented(package: str, page: Path = CONVERTERS) -> str:
    """Return the one code block of a page that imports `package`."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if re.search(rf"^(import|from) {package}\b", block, re.MULTILINE)]
    return block


def commands(text: str) -> list[list[str]]:
    """Return the words of each command in the bash blocks of a page, variables before it left out."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def own_data(*scripts: str, root: Path) -> list[tuple[str, list[str]]]:
    """Return script and arguments of the commands in docs/own_data.md that run one of `scripts`; /data is ROOT/data.

    The section on real data is left out: its packages are 170 MB.
    """
    page = re.sub(r"^## On real data\n.*?(?=^## )", "", OWN_DATA.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"(?<![\w.])/data/", f"{root}/data/", page)
    return [(words[1], words[2:]) for words in commands(text) if words[1] in scripts]
