"""How long a chunk of a stage takes, from the chunks that have been finished."""

from __future__ import annotations

# The next chunk may take longer than the longest so far: by this factor, and by these seconds.
FACTOR = 1.2
MARGIN_S = 10.0


class Durations:
    """Remembers the longest chunk of every stage."""

    def __init__(self) -> None:
        self._longest_s: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Take note of a finished chunk."""
        self._longest_s[stage] = max(seconds, self._longest_s.get(stage, 0.0))

    def expected_s(self, stage: str) -> float:
        """Return the seconds that a worker should still have for another chunk; 0 while none has been finished."""
        longest = self._longest_s.get(stage)
        return 0.0 if longest is None else FACTOR * longest + MARGIN_S
