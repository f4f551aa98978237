import io

import pytest
from rich.console import Console

from hushprompt.api.progress import TrainingBars


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_number_is_cut_in_a_narrow_terminal(width):
    console = Console(width=width, file=io.StringIO())
    bars = TrainingBars(console)
    scores = "loss 12.12 local 61 neighbor 88 epsilon 12.34"
    bars._progress.add_task("3/5 fedclip", total=120, completed=117, scores=scores)
    console.print(bars._progress.get_renderable())
    words = console.file.getvalue().split()
    assert [word for word in words if word in scores.split()] == scores.split()
    assert "117/120" in words
    assert "…" not in console.file.getvalue()
