"""Recipes: read, overridden, validated, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sciml.errors import InputError
from sciml.recipe import MAX_YAML_BYTES, Recipe, load_recipe, override, read_yaml, validate

GOOD = """
name: small
data:
  - {store: a.zarr, batch: 2}
  - {store: b.zarr}
domains: {fields: {patch: 2}}
train: {steps: 10}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(GOOD)
    return file


def test_a_recipe_is_read_and_frozen(path: Path) -> None:
    recipe = load_recipe(path)
    assert (recipe.name, recipe.train.steps, recipe.data[1].batch) == ("small", 10, 4)
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_overrides_reach_into_lists_and_raw_sections(path: Path) -> None:
    recipe = load_recipe(path, ["data.1.batch=7", "train.learning_rate=1e-3", "domains.fields.leads=[1, 2]",
                                "operator.x.y=z"])
    assert recipe.data[1].batch == 7
    assert recipe.train.learning_rate == 1e-3
    assert recipe.domains["fields"] == {"patch": 2, "leads": [1, 2]}
    assert recipe.operator == {"x": {"y": "z"}}
    raw = {"train": {"steps": 1}}
    override(raw, ["train.steps=2"])
    assert raw == {"train": {"steps": 1}}, "the original is left alone"


@pytest.mark.parametrize(("assignments", "key", "message"), [
    (["train.stepz=3"], "train.stepz", "keys of Recipe"),
    (["train.steps=0"], "train.steps", "greater than or equal to 1"),
    (["train.steps=null"], "train", "exactly one of steps and minutes"),
    (["train.minutes=5"], "train", "exactly one of steps and minutes"),
    (["data=[]"], "data", "at least 1 item"),
    (["name=a/b"], "name", "pattern"),
    (["train.optimizer=sgd"], "train.optimizer", "'muon' or 'adamw'"),
    (["schema_version=2"], "schema_version", "1"),
])
def test_a_wrong_value_is_named_with_its_key(path: Path, assignments: list[str], key: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(path, assignments)
    assert caught.value.key == key
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("assignment", ["steps", "=3", "data.x.batch=1", "data.9.batch=1", "name.x=1", "name={x:"])
def test_an_assignment_that_leads_nowhere_is_refused(assignment: str) -> None:
    with pytest.raises(InputError, match="command line"):
        override({"name": "a", "data": [{"batch": 1}]}, [assignment])


@pytest.mark.parametrize(("text", "message"), [
    ("a: &x [1]\nb: *x\n", "line 2.*alias"),
    ("a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "alias"),
    ("[1, 2]", "a mapping"),
    ("a: [1", "valid YAML"),
    ("a: !!python/object/apply:os.system [ls]", "valid YAML"),
    ("", "a mapping"),
])
def test_hostile_or_broken_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(file)


def test_a_missing_and_an_enormous_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "nothing.yaml")
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_YAML_BYTES + 1))
    with pytest.raises(InputError, match="at most"):
        read_yaml(large)


def test_validate_shortens_what_was_found() -> None:
    with pytest.raises(InputError) as caught:
        validate(Recipe, {"name": "x" * 500 + "/"}, where="here")
    assert len(caught.value.found) <= 80
