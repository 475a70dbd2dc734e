"""The examples run as they stand, each in a process of its own."""

import re
from pathlib import Path

from tests.runs import ended, program

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_pretraining_on_one_screen(pictures: Path, tmp_path: Path) -> None:
    file = EXAMPLES / "one_screen.py"
    assert len(file.read_text().splitlines()) <= 66, "one screen"
    said_in = tmp_path / "said"
    arguments = [str(pictures / "train"), str(pictures / "val"), "5"]
    assert ended(program(file.read_text(), arguments, said_in)) == 0, said_in.read_text()
    said = re.findall(r"^step (\d+): (?:loss (\d\.\d{3}), )?k-NN (\d+\.\d) %$", said_in.read_text(), re.MULTILINE)
    assert [int(step) for step, _, _ in said] == [0, 3, 6, 9, 12, 15]
    losses = [float(loss) for _, loss, _ in said[1:]]
    assert losses[-1] < losses[0], "it learns"
    assert all(float(top1) > 100 / 3 for _, _, top1 in said), "better than chance of three classes"
