"""The forms of DE-Opt that the tables compare: what each restores, and what it costs."""

import json

import pytest

from recsys_models import train

SHORT = ("search=fast", "trainer.max_epochs=6", "trainer.accelerator=cpu", "+data.batch_size=128")
# All candidates are the optimizer's own values, so whatever differs was left behind by the search.
PINNED = ("search.lr_bounds=[1e-3,1e-3]", "search.weight_decay_bounds=[0.0,0.0]")
STEPS = 5  # of an epoch

pytestmark = pytest.mark.usefixtures("tiny_synthetic")


@pytest.fixture
def result(compose_train, tmp_path):
    """Runs an experiment and returns its result."""

    def run(*overrides):
        train.run(compose_train(*SHORT, *overrides))
        return json.loads((tmp_path / "out" / "result.json").read_text())

    return run


@pytest.mark.parametrize("tuner", ["deopt_paper", "authors"])
def test_with_one_value_to_choose_from_a_run_is_what_it_is_without(tuner, result):
    plain, tuned = result("tuner=none"), result(f"tuner={tuner}", *PINNED)
    for key in ("val", "test", "train_steps", "epochs", "schedule"):
        assert tuned[key] == plain[key]


def test_the_papers_form_scores_targets_and_trials_by_whole_epochs(result):
    tuned = result("tuner=deopt_paper")
    # Four targets and four trials in each generation; a local search adds to them.
    assert tuned["probe_steps"] >= 6 * 2 * 4 * STEPS
    assert tuned["probe_steps"] % STEPS == 0
    assert tuned["evaluations"] == 6 + tuned["probe_steps"] / STEPS


def test_the_authors_form_costs_no_more_than_its_epochs(result):
    tuned = result("tuner=authors")
    assert (tuned["probe_steps"], tuned["evaluations"]) == (0, 6)
    assert tuned["train_steps"] == 6 * STEPS
    first, *trials = [tuple(row["lr"].values()) for row in tuned["schedule"]]
    assert first == (1e-3, 1e-3)
    assert len(set(trials)) == 5


def test_a_curve_knows_the_value_of_the_member_that_is_chosen(result):
    """It is validated after the leader, when the Trainer's own validation pass is over."""
    tuned = result("tuner=deopt")
    assert max(row[3] for row in tuned["curve"]) == pytest.approx(tuned["val"]["ndcg@10"])
    # Four members, beside them two far away from the second epoch on, then the own setting, too.
    passes = 4 + 3 * 6 + 2 * 7
    assert tuned["curve"][-1][:2] == [tuned["train_steps"] + tuned["probe_steps"], passes]
