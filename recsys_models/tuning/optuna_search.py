"""Optuna: TPE proposes settings, Hyperband stops those that fall behind."""

from typing import TYPE_CHECKING

from recsys_models.tuning.settings import Outcome, Setting, Space, Trainable, check_count

if TYPE_CHECKING:
    import optuna


class OptunaSearch:
    """Trains settings that Optuna proposes, one after another, the optimizer's own first.

    After every epoch Optuna hears the validation value and may end the training. What was trained
    until then counts like any other: its costs add up, and its best epoch may be chosen.

    Args:
        space: the bounds, with the coordinates that random search draws from.
        points: number of settings.
        seed: of TPE.
        mode: "max" or "min", of the monitored value.
        max_epochs: most epochs of one setting, Hyperband's largest resource.
    """

    def __init__(self, space: Space, points: int, seed: int, mode: str, max_epochs: int) -> None:
        check_count("points", points, 1)
        self.space = space
        self.points = points
        self.seed = seed
        self.mode = mode
        self.max_epochs = max_epochs

    def run(self, trainable: Trainable) -> list[Outcome]:
        """Ask, train and tell. Settings that a stopped sweep has finished are told again."""
        study = self._study()
        return [self._trial(study, trainable, number) for number in range(self.points)]

    def _study(self) -> "optuna.Study":
        import optuna  # takes a second, which the other tuners need not wait

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna.create_study(
            direction="maximize" if self.mode == "max" else "minimize",
            sampler=optuna.samplers.TPESampler(seed=self.seed),
            pruner=optuna.pruners.HyperbandPruner(
                min_resource=1, max_resource=self.max_epochs, reduction_factor=3
            ),
            study_name="sweep",  # Hyperband deals trials to brackets by it
        )

    def _trial(self, study: "optuna.Study", trainable: Trainable, number: int) -> Outcome:
        from optuna.trial import TrialState

        if number == 0:
            study.enqueue_trial(self._coordinates(self.space.own))
        trial = study.ask()
        (lr_low, lr_high), (decay_low, decay_high) = self.space.box
        log_lr = trial.suggest_float("log_lr", lr_low, lr_high)
        log_decay = trial.suggest_float("log_weight_decay", decay_low, decay_high)
        setting = self.space.own if number == 0 else self.space.decode(log_lr, log_decay)
        pruned = False

        def watch(epoch: int, value: float) -> bool:
            nonlocal pruned
            trial.report(value, epoch)
            pruned = pruned or trial.should_prune()
            return pruned

        outcome = trainable.fit(setting, watch)
        if outcome.val is None:
            study.tell(trial, state=TrialState.FAIL)
        elif pruned:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, outcome.val)
        return outcome

    def _coordinates(self, setting: Setting) -> dict[str, float]:
        return dict(zip(("log_lr", "log_weight_decay"), self.space.encode(setting), strict=True))
