"""How the two sides take turns: a process waits for a line, works, and answers with figures.

Needs the standard library only, since it runs in both environments.
"""

import json
import os
import sys
import time


class Turns:
    """The worker's end: settings come first, then one line for each turn that may begin."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print must not stand among the answers
        self.settings = json.loads(sys.stdin.readline())

    def begin(self) -> None:
        """Wait for the turn, then start the clock."""
        if not sys.stdin.readline():
            sys.exit("no more turns: the process that gives them has ended.")
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stop the clock."""
        now = time.perf_counter(), time.process_time()
        self._elapsed = [end - start for start, end in zip(self._started, now, strict=True)]

    def answer(self, **facts) -> None:
        """Hand in the seconds on the wall and on the processor, and what else is known."""
        wall, processor = self._elapsed
        facts |= {"seconds": wall, "processor_seconds": processor}
        print(json.dumps(facts), file=self._answers, flush=True)
