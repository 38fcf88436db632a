"""What `sciml demo` types: commands for the domains asked for, on files and a recipe that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from sciml.assets import config, dataset
from sciml.cli.demo import DATA, script
from sciml.domains.molecules.config import MoleculesConfig
from sciml.domains.series.config import SeriesConfig
from sciml.domains.spikes.config import SpikesConfig
from sciml.recipe import load_recipe, validate


@pytest.mark.parametrize("domains", ["all", *DATA])
@pytest.mark.parametrize("smallest", [False, True])
def test_commands_fit_together(domains: str, smallest: bool) -> None:
    """Every store is built before it is used, from a description that exists; the recipe knows its domains."""
    commands = script(Path("runs/demo"), Path("stores/demo"), domains, smallest)
    built = {command[3]: command[2] for command in commands if command[:2] == ["data", "build"]}
    wanted = {f"stores/demo/{name}.zarr" for key, name in DATA.items() if domains in ("all", key)}
    assert wanted <= set(built)
    assert all(dataset(source).is_file() for source in built.values())
    (pretrain,) = (command for command in commands if command[0] == "pretrain")
    recipe = load_recipe(config("demo"), [part for part in pretrain[2:] if "=" in part])
    assert {str(entry.store) for entry in recipe.data} == wanted
    assert set(DATA) <= set(recipe.domains)
    used = [command[command.index(option) + 1] for command in commands for option in ("--data", "--from")
            if option in command]
    assert set(used) == set(built)
    assert commands[-1] == ["report", "runs/demo"]


@pytest.mark.parametrize("stores", ["stores/demo", "elsewhere"])
def test_molecules_have_a_demo_of_their_own(stores: str) -> None:
    commands = script(Path("runs/demo"), Path(stores), "molecules", True)
    store, (pretrain,) = f"{stores}/ethanol_morse.zarr", [c for c in commands if c[0] == "pretrain"]
    recipe = load_recipe(config("demo_molecules"), [part for part in pretrain[2:] if "=" in part])
    assert [str(entry.store) for entry in recipe.data] == [store]
    assert commands[0][2:4] == ["datasets/ethanol_morse/source.yaml", store]
    assert dataset(commands[0][2]).is_file()
    validate(MoleculesConfig, dict(recipe.domains["molecules"]), where="molecules")


def test_sections_of_the_recipe_are_valid() -> None:
    recipe = load_recipe(config("demo"), [])
    for name, section in (("series", SeriesConfig), ("spikes", SpikesConfig)):
        validate(section, dict(recipe.domains[name]), where=name)
