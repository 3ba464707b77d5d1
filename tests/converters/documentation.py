"""The Python code in docs/converters.md, which the tests run."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/converters.md"


def documented(package: str) -> str:
    """Return the one code block of the page that imports `package`."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if re.search(rf"^(import|from) {package}\b", block, re.MULTILINE)]
    return block
