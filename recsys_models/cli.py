"""Lightning CLI entry: model, data and Trainer from the command line or from one YAML file.

Run ``python -m recsys_models.cli fit --model BPRMF --data.dataset filmtrust --data.path
ratings.txt``, then ``test`` with ``--config`` and ``--ckpt_path`` of that run. ``fit --help`` and
``fit --model.help BPRMF`` list what can be set.
"""

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from recsys_models.data import RecsysDataModule
from recsys_models.models import RecommenderModule
from recsys_models.models.base import check_monitor


class RecsysCLI(LightningCLI):
    """Sizes the model by the data, and lets one metric choose the epoch and end the run."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Fit, validate and test; recommenders have nothing to predict beyond a ranking."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the monitor and its two callbacks; take the numbers of users and items from data."""
        parser.add_argument(
            "--monitor", default="val/ndcg@10", help="Validation metric that the best epoch has."
        )
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"early_stopping.mode": "max", "early_stopping.patience": 10})
        parser.set_defaults({"checkpoint.mode": "max", "checkpoint.filename": "best"})
        for callback in ("early_stopping", "checkpoint"):
            parser.link_arguments("monitor", f"{callback}.monitor")
        for size in (num_users, num_items):
            target = f"model.init_args.{size.__name__}"
            parser.link_arguments("data", target, compute_fn=size, apply_on="instantiate")

    def instantiate_classes(self) -> None:
        """Build data, model and Trainer; a wrong argument or file ends in one message."""
        try:
            super().instantiate_classes()
            if (monitor := self.config[self.config.subcommand].monitor).startswith("val/"):
                check_monitor(monitor, self.model)
        except (OSError, ValueError) as error:
            # What happens within a link arrives wrapped; our own messages need no wrapping.
            self.parser.error(str(error.__cause__ or error))


def num_users(data: RecsysDataModule) -> int:
    """Number of users, known once the data has been read."""
    return _read(data).num_users


def num_items(data: RecsysDataModule) -> int:
    """Number of items, likewise."""
    return _read(data).num_items


def _read(data: RecsysDataModule) -> RecsysDataModule:
    data.prepare_data()
    data.setup()  # the Trainer calls it again, when nothing is left to do
    return data


def main() -> None:
    """Read the command line and run what it says."""
    RecsysCLI(
        RecommenderModule,
        RecsysDataModule,
        trainer_defaults={"max_epochs": 100, "deterministic": True},
        seed_everything_default=0,
        subclass_mode_model=True,
        auto_configure_optimizers=False,  # each model takes its optimizer as an argument
    )


if __name__ == "__main__":
    main()
