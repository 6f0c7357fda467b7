"""Population based training (Jaderberg et al., 2017): settings that change while they train."""

from pathlib import Path

import numpy as np

from recsys_models.tuning.settings import Outcome, Setting, Space, Trainable, check_count

FACTORS = (0.8, 1.2)  # what a copied value is multiplied by, either with equal chance
FRESH = 0.25  # chance that it is drawn anew from the space instead
TRUNCATION = 0.2  # share of the population that is replaced by copies of as many of the best


class PopulationTraining:
    """Trains several members from the same first weights, each epoch with its own setting.

    After each epoch the worst fifth of the members copies weights, optimizer state and setting
    from the best fifth, and the copied setting is perturbed. A member that diverged copies, too.

    Nothing is shared with the population that DE-Opt keeps with ``carry="population"``: that one
    lives inside one run of the Trainer, moves all members by differences and knows layers.

    Args:
        space: the bounds; the first member has the optimizer's own setting.
        population_size: number of members.
        seed: of the draws.
        mode: "max" or "min", of the monitored value.
        max_epochs: most epochs of a member.
        patience: epochs without a better value in the whole population before training ends.
    """

    def __init__(
        self,
        space: Space,
        population_size: int,
        seed: int,
        mode: str,
        max_epochs: int,
        patience: int,
    ) -> None:
        check_count("population_size", population_size, 2)
        self.space = space
        self.population_size = population_size
        self.seed = seed
        self.sign = 1.0 if mode == "max" else -1.0
        self.max_epochs = max_epochs
        self.patience = patience

    def run(self, trainable: Trainable) -> list[Outcome]:
        """Train the population; every outcome is one member's epoch."""
        rng = np.random.default_rng(self.seed)
        others = [self.space.sample(rng) for _ in range(self.population_size - 1)]
        settings = [self.space.own, *others]
        parents: list[Outcome | None] = [None] * self.population_size
        everything: list[Outcome] = []
        best, waited = -np.inf, 0
        for epoch in range(self.max_epochs):
            legs = [
                trainable.fit_leg(setting, parent, epoch + 1, self._file(trainable, epoch, member))
                for member, (setting, parent) in enumerate(zip(settings, parents, strict=True))
            ]
            everything += legs
            top = max(self._score(leg) for leg in legs)
            waited = 0 if top > best else waited + 1
            best = max(best, top)
            if waited >= self.patience or not any(leg.weights for leg in legs):
                break
            self._keep_files(everything, legs)
            settings, parents = self._next(legs, rng)
        self._keep_files(everything, [])
        return everything

    def _next(
        self, legs: list[Outcome], rng: np.random.Generator
    ) -> tuple[list[Setting], list[Outcome | None]]:
        order = sorted(range(len(legs)), key=lambda k: -self._score(legs[k]))
        replaced = max(1, int(TRUNCATION * len(legs)))
        best = order[:replaced]
        settings = [leg.setting for leg in legs]
        parents: list[Outcome | None] = list(legs)
        for member in order[replaced:]:
            diverged = legs[member].val is None
            if diverged or member in order[-replaced:]:
                model = legs[int(rng.choice(best))]
                settings[member], parents[member] = self._perturb(model.setting, rng), model
        return settings, parents

    def _perturb(self, setting: Setting, rng: np.random.Generator) -> Setting:
        fresh = self.space.sample(rng)
        values = [
            new if rng.random() < FRESH else old * float(rng.choice(FACTORS))
            for old, new in zip(setting, fresh, strict=True)
        ]
        return self.space.clip(Setting(*values))

    def _score(self, leg: Outcome) -> float:
        return -np.inf if leg.val is None else self.sign * leg.val

    def _file(self, trainable: Trainable, epoch: int, member: int) -> Path:
        return trainable.folder / "points" / f"epoch{epoch}_member{member}.ckpt"

    def _keep_files(self, everything: list[Outcome], legs: list[Outcome]) -> None:
        """Remove checkpoints that neither the next epoch nor the final choice needs."""
        needed = {leg.weights for leg in [max(everything, key=self._score), *legs]}
        for leg in everything:
            if leg.weights not in needed:
                Path(leg.weights).unlink(missing_ok=True)
