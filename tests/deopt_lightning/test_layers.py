from __future__ import annotations

import pytest
import torch
from torch import nn

from deopt_lightning import group_layers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)


class TiedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5)
        self.decoder.weight = self.embedding.weight


class GroupedNet(Net):
    groups: dict[str, list[str]]

    def layer_groups(self) -> dict[str, list[str]]:
        return self.groups


def as_dict(module: nn.Module, patterns: object = None) -> dict[str, list[str]]:
    layers = group_layers(module, patterns)  # type: ignore[arg-type]
    return {layer.name: list(layer.parameter_names) for layer in layers}


def test_default_is_one_layer_per_submodule_in_definition_order() -> None:
    assert as_dict(Net()) == {
        "root": ["scale"],
        "encoder.0": ["encoder.0.weight", "encoder.0.bias"],
        "encoder.2": ["encoder.2.weight", "encoder.2.bias"],
        "head": ["head.weight", "head.bias"],
    }


def test_frozen_parameters_belong_to_no_layer() -> None:
    net = Net()
    net.encoder.requires_grad_(False)
    assert list(as_dict(net)) == ["root", "head"]


@pytest.mark.parametrize("patterns", [None, ["*"], ["embedding.*", "decoder.*"]])
def test_tied_parameter_belongs_to_its_first_owner_only(patterns: object) -> None:
    names = [name for layer in as_dict(TiedNet(), patterns).values() for name in layer]
    assert sorted(names) == ["decoder.bias", "embedding.weight"]


def test_first_matching_pattern_wins_and_mapping_names_the_layers() -> None:
    patterns = {"biases": "*.bias", "encoder": ["encoder.*", "scale"], "rest": "*"}
    assert as_dict(Net(), patterns) == {
        "biases": ["encoder.0.bias", "encoder.2.bias", "head.bias"],
        "encoder": ["scale", "encoder.0.weight", "encoder.2.weight"],
        "rest": ["head.weight"],
    }


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["encoder.*"], "leave out trainable parameters: scale, head.weight, head.bias"),
        (["*", "head.*"], r"'head.\*' .* matches no trainable parameter"),
        (["encoder", "*"], r"'encoder' .* no trainable .* Write 'encoder\.\*'"),
        ({"all": ["heads", "encoder"]}, r"'all' .* Write 'encoder\.\*'"),
        ("head.*", "sequence or a mapping"),
        (3, "sequence or a mapping of patterns, at least one; got 3"),
        ([], r"at least one; got \[\]"),
        ({"*"}, "sequence or a mapping of patterns"),  # in no order, of which the first counts
        (iter(["*"]), "sequence or a mapping of patterns"),  # gone by the second fit
        (["head.*", 1], "as strings, .* got 1 for the layer 1"),
        ([["head.*", "*"]], r"as strings, .* got \['head.\*', '\*'\]"),
        ({1: "*"}, r"as strings, .* got '\*' for the layer 1"),
        ({"all": None}, "as strings, .* got None for the layer 'all'"),
        ({"all": {"some": "*"}}, "as strings, .* got .*'some'.* for the layer 'all'"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(patterns: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_layers(Net(), patterns)  # type: ignore[arg-type]


def test_layer_groups_of_the_module_decide() -> None:
    net = GroupedNet()
    names = [name for name, _ in net.named_parameters()]
    net.groups = {"odd": names[::2], "even": names[1::2]}
    assert as_dict(net) == net.groups


def test_layer_groups_may_name_a_tied_parameter_under_both_names() -> None:
    net = TiedNet()
    net.layer_groups = lambda: {  # type: ignore[assignment]
        "in": ["embedding.weight"],
        "out": ["decoder.weight", "decoder.bias"],
    }
    assert as_dict(net) == {"in": ["embedding.weight"], "out": ["decoder.bias"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: {"a": names[1:]}, "leave out trainable parameters: scale"),
        (lambda names: {"a": names, "b": names[:1]}, "names parameter 'scale' twice"),
        (lambda names: {"a": [*names, *names[:1]]}, "names parameter 'scale' twice"),
        (lambda names: {"a": [*names, "ghost"]}, "there is no such parameter"),
    ],
)
def test_layer_groups_must_cover_each_parameter_once(change: object, message: str) -> None:
    net = GroupedNet()
    net.groups = change([name for name, _ in net.named_parameters()])  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        group_layers(net)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, "must return a mapping .*; got None"),
        ([("all", ["scale"])], "must return a mapping .*; got .*'all'"),
        ({"all": "scale"}, "all strings; got 'scale' for the layer 'all'"),
        ({"all": None}, "all strings; got None for the layer 'all'"),
        ({"all": [["scale"]]}, r"all strings; got \[\['scale'\]\] for the layer 'all'"),
        ({"all": [nn.Parameter(torch.ones(1))]}, "all strings; got .*Parameter"),
        ({1: ["scale"]}, r"all strings; got \['scale'\] for the layer 1"),
    ],
)
def test_layer_groups_that_are_no_mapping_of_strings_are_refused(
    groups: object, message: str
) -> None:
    net = GroupedNet()
    net.groups = groups  # type: ignore[assignment]
    with pytest.raises(ValueError, match=f"layer_groups.* of GroupedNet .*{message}"):
        group_layers(net)


def test_layer_groups_may_give_names_as_they_come() -> None:
    net = GroupedNet()
    net.groups = {"all": (name for name, _ in net.named_parameters())}  # type: ignore[dict-item]
    assert len(as_dict(net)["all"]) == 7


def test_a_submodule_called_root_is_a_layer_of_its_own() -> None:
    net = Net()
    net.root = nn.Linear(1, 1)
    assert as_dict(net)["root"] == ["root.weight", "root.bias"]
    assert as_dict(net)["root_"] == ["scale"]


def test_module_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        group_layers(Net().requires_grad_(False))
