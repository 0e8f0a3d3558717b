from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from jobs.attempt import Refused
from jobs.warm_start import read_weights, warm_start


def model(**more: nn.Module) -> nn.ModuleDict:
    torch.manual_seed(len(more))
    return nn.ModuleDict({"encoder": nn.Linear(3, 2), "decoder": nn.Linear(2, 3)} | more)


def test_that_what_is_known_is_loaded_and_what_is_declared_fresh_keeps_its_initial_values() -> None:
    earlier, later = model(), model(gate=nn.Linear(2, 2))
    gate = {name: value.clone() for name, value in later["gate"].state_dict().items()}
    report = warm_start(later, earlier.state_dict(), fresh=("gate",), source="train-1")
    for name, value in earlier.state_dict().items():
        assert torch.equal(later.state_dict()[name], value)
    for name, value in gate.items():
        assert torch.equal(later["gate"].state_dict()[name], value)
    assert report.loaded == ("decoder.bias", "decoder.weight", "encoder.bias", "encoder.weight")
    assert report.fresh == ("gate.bias", "gate.weight")


@pytest.mark.parametrize(
    ("earlier", "later", "fresh", "said"),
    [
        (model(), model(gate=nn.Linear(2, 2)), (), "not declared fresh (gate.bias, gate.weight)"),
        (model(gate=nn.Linear(2, 2)), model(), (), "nowhere in the model (gate.bias, gate.weight)"),
        (model(), model(decoder=nn.Linear(4, 3)), (), "decoder.weight is [3, 2], the model's [3, 4]"),
        (model(), model(), ("gate",), "names nothing of the model (gate)"),
    ],
)
def test_that_any_other_mismatch_is_refused_and_nothing_is_copied(
    earlier: nn.Module, later: nn.Module, fresh: tuple[str, ...], said: str
) -> None:
    before = {name: value.clone() for name, value in later.state_dict().items()}
    with pytest.raises(Refused, match="cannot start from train-1") as refused:
        warm_start(later, earlier.state_dict(), fresh=fresh, source="train-1")
    assert said in str(refused.value)
    assert all(torch.equal(later.state_dict()[name], value) for name, value in before.items())


def test_that_a_prefix_is_a_whole_name() -> None:
    with pytest.raises(Refused, match="gates"):
        warm_start(model(gates=nn.Linear(2, 2)), model().state_dict(), fresh=("gate",), source="train-1")


def test_that_a_file_which_holds_no_weights_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"no weights")
    with pytest.raises(Refused, match=r"model\.pt is no file of weights"):
        read_weights(path)
    torch.save({"step": 3}, path)
    with pytest.raises(Refused, match="other things than named tensors"):
        read_weights(path)
