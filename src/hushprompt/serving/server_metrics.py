"""Counts and times of a server, as Prometheus reads them: no labels of images, no addresses."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Collection, Mapping

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram, in seconds."""


class ServerMetrics:
    """What happened since the start."""

    def __init__(self, paths: Collection[str]) -> None:
        """Take the paths that are told apart; all others are one."""
        self._paths = frozenset(paths)
        self._answers: Counter[tuple[str, int]] = Counter()
        self._times: dict[str, list[float]] = {}

    def count(self, path: str, status: int, seconds: float) -> None:
        """Note an answer; a status of 0 is none, as when the sender went away."""
        known = path if path in self._paths else "other"
        self._answers[known, status] += 1
        times = self._times.setdefault(known, [0.0] * (len(BOUNDS) + 2))  # by bound, beyond all, and their sum
        times[bisect.bisect_left(BOUNDS, seconds)] += 1
        times[-1] += seconds

    def text(self, gauges: Mapping[str, float]) -> str:
        """Return all of it in Prometheus's text format, with values of the moment."""
        lines = ["# TYPE hushprompt_requests_total counter"]
        lines += [
            f'hushprompt_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self._answers.items())
        ]
        lines.append("# TYPE hushprompt_request_seconds histogram")
        for path, times in sorted(self._times.items()):
            name = f'hushprompt_request_seconds_bucket{{path="{path}",le='
            counts = list(itertools.accumulate(times[:-1]))
            lines += [f'{name}"{bound:g}"}} {count:g}' for bound, count in zip(BOUNDS, counts, strict=False)]
            lines += [
                f'{name}"+Inf"}} {counts[-1]:g}',
                f'hushprompt_request_seconds_count{{path="{path}"}} {counts[-1]:g}',
                f'hushprompt_request_seconds_sum{{path="{path}"}} {times[-1]:.6f}',
            ]
        for name, value in gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE hushprompt_{name} {kind}", f"hushprompt_{name} {value:g}"]
        return "\n".join(lines) + "\n"
