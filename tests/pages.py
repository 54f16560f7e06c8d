"""The page of an export, whose lines are executed for texts as a reader would."""

import re

from bbt.baselines.peft_training import peft_imported

TEXTS = ["a film so bad that it was great", "the plot is worse", "I liked it ; you did not", "Zoë, 3 % ?"]
PAIR = "it was slow"


def run_page(folder, monkeypatch, text, what="probabilities", **replaced):
    """Execute the lines of the folder's page for one text; what they come to, and all their names."""
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    lines = lines.replace('"your text"', repr(text)).replace('"your second text, where there are two"', repr(PAIR))
    for old, new in replaced.items():
        lines = lines.replace(old, new)
    assert len([line for line in lines.splitlines() if line]) < 25
    monkeypatch.chdir(folder)
    names = {}
    with peft_imported():
        exec(compile(lines, "README.md", "exec"), names)
    return names[what], names
