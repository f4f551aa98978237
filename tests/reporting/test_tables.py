import io
import math

from rich.console import Console

from hushprompt.reporting.tables import captions, result_table
from hushprompt.runs.records import ArmSummary


def arm(method="dp_fpl", title="DP-FPL", epsilon=7.9954, local=0.6543):
    return ArmSummary(
        arm=method, method=method, title=title, epsilon=epsilon, delta=1e-5, audience="personal", local=local,
        neighbor=0.5, harmonic_mean=0.567, worst_client=0.1, calibration_error=0.1, seconds=12.3, seed=1, num_rounds=3,
        per_client=[], per_class=[],
    )  # fmt: skip


def rendered(arms, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(result_table(arms))
    return console.export_text()


def test_the_table_fits_80_columns_with_every_name_and_number_whole():
    text = rendered([arm("random_prompt", "untrained random context", None), arm(epsilon=math.inf), arm()])
    for part in (
        "untrained random context",
        "DP-FPL without noise",
        "65.4",
        "56.7",
        "8",
        "inf",
        "harmonic",
        "worst",
        "12",
    ):
        assert part in text
    assert "…" not in text


def test_under_the_table_epsilon_has_all_that_gives_it_meaning():
    statement = "epsilon = 8 at delta = 1e-05 for one example ... (add_remove) ...; accountant: PLD."
    privacy = {
        "arms": [{"arm": "dp_fpl, epsilon 8", "audiences": {"personal": {"statement": statement}}}],
        "server": "The server is trusted.",
        "several_arms": "Each arm is its own.",
    }
    text = "\n".join(captions([arm()], privacy))
    assert statement in text
    assert "The server is trusted." in text
    assert "holder of a client's personal prompt" in text
