"""One colour for each tuner, the same in the pictures and beside its name in the tables."""

from collections.abc import Sequence

# Kinds of tuners share a hue: sweeps blue, optimizers that need no lr green, learned penalties
# purple, forms of DE-Opt from yellow to red; what is not tuned is grey.
KNOWN = {
    "none": "#7f7f7f",
    "grid": "#08306b",
    "random": "#2171b5",
    "optuna": "#4ea3d8",
    "pbt": "#17becf",
    "prodigy": "#238b45",
    "schedule_free": "#74c476",
    "sgda": "#c994c7",
    "lambda_opt_sgd": "#9e9ac8",
    "lambda_opt_adam": "#6a51a3",
    "lambda_opt_amsgrad": "#3f007d",
    "lambda_opt_adamod": "#b3479f",
    "authors": "#c9a227",
    "deopt_paper": "#f28e2b",
    "deopt_weights": "#e15759",
    "deopt": "#a50f15",
}
OTHERS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#444444")


def colours_of(tuners: Sequence[str]) -> dict[str, str]:
    """A colour for each tuner; those not known take turns among the others."""
    unknown = [tuner for tuner in tuners if tuner not in KNOWN]
    own = {tuner: OTHERS[k % len(OTHERS)] for k, tuner in enumerate(unknown)}
    return {tuner: KNOWN.get(tuner) or own[tuner] for tuner in tuners}
