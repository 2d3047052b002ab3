"""Fields read from source are the fields of the imported classes; if a library moves them, this fails first."""

import dataclasses

import pytest

from posttrain.recipe.schema import GRPO_CONFIG, MODEL_CONFIG, SFT_CONFIG, accepts, read_fields


@pytest.mark.parametrize(
    ("sources", "name"), [(SFT_CONFIG, "SFTConfig"), (GRPO_CONFIG, "GRPOConfig"), (MODEL_CONFIG, "ModelConfig")]
)
def test_source_and_imported_class_have_the_same_fields(sources, name):
    import trl

    real = {field.name: field for field in dataclasses.fields(getattr(trl, name)) if field.init}
    read = read_fields(sources)
    assert set(read) == set(real)
    for field in real.values():
        if field.metadata.get("choices") and not field.name.startswith("log_level"):  # computed, not literal
            assert list(read[field.name].choices) == list(field.metadata["choices"])


def test_enumerations_become_choices():
    fields = read_fields(SFT_CONFIG)
    assert fields["save_strategy"].choices == ("no", "steps", "epoch", "best")
    assert "cosine" in fields["lr_scheduler_type"].choices
    assert "adamw_torch_fused" in fields["optim"].choices


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        ("int", 3, True),
        ("int", 3.0, False),
        ("int", True, False),
        ("float", 3, True),
        ("float", "3", False),
        ("bool", 1, False),
        ("str | None", None, True),
        ("str", None, False),
        ("None | str | list[str]", ["a"], True),
        ("None | str | list[str]", [1], False),
        ("dict[str, Any] | str | None", {"a": 1}, True),
        ("SaveStrategy | str", "steps", True),
        ("SaveStrategy | str", 3, False),
        ("str | None | Literal[False]", False, True),
        ("str | None | Literal[False]", True, False),
    ],
)
def test_accepts(annotation, value, expected):
    assert accepts(annotation, value) is expected


def test_every_annotation_in_use_can_be_read():
    for field in (read_fields(SFT_CONFIG) | read_fields(MODEL_CONFIG)).values():
        accepts(field.annotation, object())
