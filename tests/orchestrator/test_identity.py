from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from jobs.data_spec import CocoGeneratorSpec, CocoSpec, MultiDSpritesSpec
from jobs.spec import CountSpec, EmbedSpec, EvaluateSpec, PrepareSpec, TrainSpec, WarmStartSpec, parse_job_spec
from models.spec import (
    BackboneSpec,
    CovarianceObjective,
    DinosaurSpec,
    GateSpec,
    ReconstructionObjective,
    SlotAutoencoderSpec,
    UntrainedScoreSpec,
)
from models.spec_base import Spec, UpsamplingDecoder, added, location
from orchestrator.identity import canonical, id_of_canonical, run_id

GOLDEN = [
    (CountSpec(), {}, "count-d23a95ac033f"),
    (CountSpec(seed=3, steps=50, fail_at=7), {}, "count-3010f3b3a992"),
    (PrepareSpec(data=MultiDSpritesSpec()), {}, "prepare-5702c9aa6eb2"),
    (PrepareSpec(data=MultiDSpritesSpec(path="/a", content="c0ffee", generator=None)), {}, "prepare-f399261926dc"),
    (TrainSpec(model=SlotAutoencoderSpec()), {"prepare": "prepare-000000000000"}, "train-1c025b8a3804"),
    (
        TrainSpec(model=SlotAutoencoderSpec(decoder=UpsamplingDecoder()), objective=CovarianceObjective(), seed=1),
        {"prepare": "prepare-000000000000"},
        "train-4ee525a37336",
    ),
    (TrainSpec(model=UntrainedScoreSpec(), steps=0), {"prepare": "prepare-000000000000"}, "train-df1d7b536af0"),
    (EvaluateSpec(), {"prepare": "prepare-000000000000", "train": "train-000000000000"}, "evaluate-0a5dfacc0f85"),
    (PrepareSpec(data=CocoSpec(path="/a", content="c0ffee")), {}, "prepare-dd0099c54a8f"),
    (PrepareSpec(data=CocoSpec(generator=CocoGeneratorSpec())), {}, "prepare-da09463fd1d3"),
    (EmbedSpec(), {"prepare": "prepare-000000000000"}, "embed-f1f1ccf9bd4a"),
    (
        EmbedSpec(backbone=BackboneSpec(weights="file", path="/a", content="c0ffee")),
        {"prepare": "prepare-000000000000"},
        "embed-6034fa689c42",
    ),
    (TrainSpec(model=DinosaurSpec()), {"prepare": "prepare-000000000000", "embed": "embed-000000000000"}, "train-f43984703fb3"),
    (
        TrainSpec(model=DinosaurSpec(), online=BackboneSpec(), flip=True),
        {"prepare": "prepare-000000000000"},
        "train-df0f15690d66",
    ),
    (
        TrainSpec(
            model=DinosaurSpec(num_slots=33, gate=GateSpec()),
            objective=ReconstructionObjective(sparsity=0.5),
            warm_start=WarmStartSpec(fresh=("gate",)),
        ),
        {"prepare": "prepare-000000000000", "embed": "embed-000000000000", "train": "train-000000000000"},
        "train-f8e7e845f133",
    ),
    (
        EvaluateSpec(protocol="official", gate="deterministic"),
        {"prepare": "prepare-000000000000", "embed": "embed-000000000000", "train": "train-000000000000"},
        "evaluate-222727af7bc6",
    ),
]


@pytest.mark.parametrize(("spec", "needs", "expected"), GOLDEN)
def test_that_run_ids_never_change(spec: Spec, needs: dict[str, str], expected: str) -> None:
    assert run_id(spec, needs) == expected


def test_that_the_canonical_form_is_sorted_json_without_locations() -> None:
    spec = PrepareSpec(data=MultiDSpritesSpec(path="/somewhere/file", content="c0ffee", generator=None))
    assert canonical(spec) == (
        '{"data":{"content":"c0ffee","generator":null,"kind":"mdsprites","test":{"count":320,"first":60000},'
        '"train":{"count":60000,"first":0}},"kind":"prepare"}'
    )


def test_that_a_location_is_not_identity_and_the_content_behind_it_is() -> None:
    def of(path: str, content: str) -> str:
        return run_id(PrepareSpec(data=MultiDSpritesSpec(path=path, content=content, generator=None)), {})

    assert of("/here", "c0ffee") == of("/there", "c0ffee")
    assert of("/here", "c0ffee") != of("/here", "decaf")


def test_that_runtime_settings_are_not_identity() -> None:
    fast = parse_job_spec({"kind": "train", "model": {"kind": "slot_autoencoder"}, "runtime": {"workers": 8, "threads": 4}})
    assert run_id(fast, {}) == run_id(TrainSpec(model=SlotAutoencoderSpec()), {})


@pytest.mark.parametrize(("left", "right"), [(1, 1.0), (1e-3, 0.001), ("1e-3", 0.001), (2, "2")])
def test_that_spellings_of_one_number_are_one_run(left: Any, right: Any) -> None:
    def of(value: Any) -> str:
        config = {"kind": "train", "model": {"kind": "slot_autoencoder"}, "optimizer": {"learning_rate": value}}
        return run_id(parse_job_spec(config), {})

    assert of(left) == of(right)


def test_that_needs_are_identity_whatever_their_order() -> None:
    both = {"prepare": "prepare-1", "train": "train-1"}
    assert run_id(EvaluateSpec(), both) == run_id(EvaluateSpec(), dict(reversed(both.items())))
    assert run_id(EvaluateSpec(), both) != run_id(EvaluateSpec(), both | {"train": "train-2"})


class _DecoderBefore(Spec):
    kind: Literal["a"] = "a"
    width: int = 4


class _DecoderAfter(Spec):
    kind: Literal["a"] = "a"
    width: int = 4
    bias: bool = added(False)
    device: str = location("cpu")


class _Other(Spec):
    kind: Literal["b"] = "b"


class _Before(Spec):
    kind: Literal["train"] = "train"
    parts: tuple[_DecoderBefore, ...] = (_DecoderBefore(),)
    decoder: Annotated[_DecoderBefore | _Other, Field(discriminator="kind")] = _DecoderBefore()


class _After(Spec):
    kind: Literal["train"] = "train"
    parts: tuple[_DecoderAfter, ...] = (_DecoderAfter(),)
    decoder: Annotated[_DecoderAfter | _Other, Field(discriminator="kind")] = _DecoderAfter()
    dropout: float = added(0.0)
    extra: _Other | None = added(None)


def test_that_a_field_added_with_a_neutral_value_keeps_old_ids_at_any_depth() -> None:
    assert canonical(_After()) == canonical(_Before())
    assert run_id(_After(), {}) == run_id(_Before(), {})


@pytest.mark.parametrize(
    "changed",
    [
        _After(dropout=0.1),
        _After(extra=_Other()),
        _After(decoder=_DecoderAfter(bias=True)),
        _After(parts=(_DecoderAfter(bias=True),)),
    ],
)
def test_that_an_added_field_with_another_value_is_another_run(changed: _After) -> None:
    assert run_id(changed, {}) != run_id(_Before(), {})


def test_that_a_location_inside_a_union_is_not_identity() -> None:
    assert canonical(_After(decoder=_DecoderAfter(device="cuda"))) == canonical(_Before())


def test_that_the_id_of_a_canonical_text_is_the_run_id() -> None:
    spec = CountSpec(seed=5)
    assert id_of_canonical("count", canonical(spec), {}) == run_id(spec, {})
