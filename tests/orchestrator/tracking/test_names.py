"""Names that the tracker accepts, and that stay apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param_name

from orchestrator.tracking.names import params, shorten, tracker_key


@given(st.text(min_size=1, max_size=400))
def test_that_any_name_becomes_one_that_mlflow_accepts(name):
    key = tracker_key(name)
    _validate_metric_name(key)
    _validate_param_name(key)
    assert len(key) <= 250


@given(st.lists(st.text(alphabet="a/.( [", min_size=1, max_size=12), unique=True, max_size=20))
def test_that_two_names_never_become_one(names):
    assert len({tracker_key(name) for name in names}) == len(names)


def test_that_a_good_name_stays_as_it_is():
    assert tracker_key("eval/fg_ari") == "eval/fg_ari"
    assert tracker_key("model.decoder.channels") == "model.decoder.channels"


def test_that_a_configuration_becomes_flat_parameters():
    config = {"kind": "train", "model": {"slots": 5, "decoder": {"kind": "x"}, "none": None}, "seeds": [0, 1], "empty": {}}
    assert params(config) == {
        "kind": "train",
        "model.slots": "5",
        "model.decoder.kind": "x",
        "model.none": "null",
        "seeds": "[0, 1]",
        "empty": "{}",
    }


def test_that_a_value_that_is_too_long_is_cut_with_a_mark():
    assert shorten("x" * 50, 20) == "x" * 11 + " ...[cut]"
    assert shorten("x" * 20, 20) == "x" * 20
