from __future__ import annotations

from jobs.needs import check_needs
from jobs.spec import MultiDSpritesSpec, PrepareSpec, TrainSpec
from models.spec import LanguageSlotsSpec


def test_that_a_model_of_sentences_is_refused_on_data_without_them() -> None:
    problems = check_needs(TrainSpec(model=LanguageSlotsSpec()), {"prepare": PrepareSpec(data=MultiDSpritesSpec())})
    assert problems == ["model.kind language_slots needs frames with sentences, and `mdsprites` has none"]
