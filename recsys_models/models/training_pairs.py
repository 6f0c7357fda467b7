"""The training pairs, for models that are built on them as well as trained on them."""

from recsys_models.data.interactions import Interactions
from recsys_models.models.base import RecommenderModule


def training_pairs(model: RecommenderModule) -> Interactions | None:
    """The attribute ``train`` of the data module that the model's Trainer has, if it has one."""
    train = getattr(getattr(model.trainer, "datamodule", None), "train", None)
    return train if isinstance(train, Interactions) else None


def check_sizes(model: RecommenderModule, train: Interactions) -> None:
    """Refuse the pairs of other data than the model was built for."""
    if (train.num_users, train.num_items) != (model.num_users, model.num_items):
        raise ValueError(
            f"{type(model).__name__} was built for {model.num_users} users and {model.num_items} "
            f"items; got interactions of {train.num_users} and {train.num_items}. "
            "Build the model with the sizes of the data."
        )


def missing_message(model: RecommenderModule, use: str) -> str:
    """What a model says that needs the pairs and got none."""
    return (
        f"{type(model).__name__} needs the training interactions for {use}; got none. "
        "Give the Trainer a data module with an attribute train of type Interactions, or call "
        "set_interactions(train) on the model first."
    )
