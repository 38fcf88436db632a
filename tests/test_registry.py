"""Plug-ins of our own packages and of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sciml import registry
from sciml.errors import InputError


def test_modules_with_a_plugin_are_listed_and_helpers_are_not() -> None:
    assert {"full", "axial", "local", "spectral"} <= set(registry.names("sciml.mixers"))
    assert not {"attend", "contract", "geometry"} & set(registry.names("sciml.mixers"))
    assert {"fields", "series"} <= set(registry.names("sciml.domains"))
    for group in ("sciml.operator.heads", "sciml.operator.stems", "sciml.operator.biases", "sciml.objectives"):
        for name in registry.names(group):
            assert registry.find(group, name) is not None


def test_entry_points_of_other_packages_are_listed_and_loaded() -> None:
    from tiny_domains.grid import Grid

    assert "tiny_grid" in registry.names("sciml.domains")
    assert registry.find("sciml.domains", "tiny_grid") is Grid


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"recipe.yaml.*'fulll'.*axial, .*full"):
        registry.find("sciml.mixers", "fulll", where="recipe.yaml")
    with pytest.raises(InputError, match="one of: none"):
        registry.find("sciml.nothing_of_the_kind", "x")
    with pytest.raises(InputError):
        registry.find("sciml.mixers", "attend")


def test_a_group_may_be_outside_of_any_package(tmp_path: Path) -> None:
    """A lab's group exists as soon as one of its packages declares an entry point."""
    info = tmp_path / "lab-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sciml.mixers]\nours = lab_mixers:Ours\n")
    (tmp_path / "lab_mixers.py").write_text("class Ours: pass\n")
    code = ("from sciml import registry; assert 'ours' in registry.names('sciml.mixers');"
            "print(registry.find('sciml.mixers', 'ours').__name__)")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path), "PATH": ""},
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Ours"


def test_listing_imports_nothing() -> None:
    code = ("import sys; from sciml import registry; registry.names('sciml.domains'); registry.names('sciml.mixers');"
            "print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
