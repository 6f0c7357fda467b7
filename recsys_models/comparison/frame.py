"""What a comparison says of itself, beside its runs."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Frame:
    """Title and terms of a comparison, in plain data.

    Attributes:
        title: of its page.
        metrics: of its tables.
        baseline: the tuner that others are compared with.
        withdrawn: data sets that cannot be had; shown, not run.
        time_only: whether costs are all there is to see, as on generated data of some size.
        printed: what the paper prints: ``source``, a list ``values`` of ``{data, model, row, tuner,
            METRIC: number, ...}``, where tuner names our row beside it and a model may be "any",
            and a list ``why`` of reasons why ours differ. Empty where there is nothing to compare
            with.
        command: what made the runs.
    """

    title: str
    metrics: list[str]
    baseline: str
    withdrawn: list[str] = field(default_factory=list)
    time_only: bool = False
    printed: dict[str, Any] = field(default_factory=dict)
    command: str = ""
