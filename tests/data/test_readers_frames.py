"""Images shown in an NWB session, as means over tiles on the bins."""

from __future__ import annotations

import datetime
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciml.data.readers import _spike_traces, read
from sciml.data.readers._spike_traces import tile_means
from sciml.data.source import SourceSpec
from sciml.errors import InputError
from sciml.recipe import validate

MOVIE = np.random.default_rng(0).integers(0, 256, (20, 6, 4)).astype(np.uint8)  # (frame, x, y)
FRAMES = {"movie": {"tiles": [2, 3], "unit": "1"}}


def session(path: Path) -> Path:
    """2 s of one unit; a tone, a movie with times from 0.4 to 1.35 s, another without, and one in files of its own."""
    pynwb = pytest.importorskip("pynwb", reason="pynwb (the extra `spikes`) is not installed")
    from pynwb.image import ImageSeries, OpticalSeries

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = pynwb.NWBFile("s", "lab-1", datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))
        made.add_unit(spike_times=np.arange(0.01, 2, 0.1), obs_intervals=[[0.0, 2.0]])
        made.add_stimulus(pynwb.TimeSeries("tone", data=np.arange(40.0), rate=20.0, unit="Hz"))
        made.add_stimulus(ImageSeries("movie", data=MOVIE, unit="n/a", format="raw", conversion=0.5,
                                      timestamps=0.4 + 0.05 * np.arange(20)))
        made.add_stimulus(OpticalSeries("screen", data=MOVIE, unit="n/a", format="raw", rate=10.0, starting_time=0.0,
                                        distance=1.0, field_of_view=[1.0, 1.0], orientation="left"))
        made.add_stimulus(ImageSeries("film", external_file=["film.avi"], format="external", starting_frame=[0],
                                      rate=10.0, unit="n/a", num_samples=20))
        made.add_stimulus(ImageSeries("colour", data=np.zeros((20, 6, 4, 3)), unit="n/a", format="raw", rate=10.0))
        with pynwb.NWBHDF5IO(path, "w") as io:
            io.write(made)
    return path


def look(path: Path, **options: Any) -> xr.Dataset:
    split = {"by": "time", "fractions": {"train": 0.7, "validation": 0.1, "test": 0.2}}
    chosen: dict[str, Any] = {"format": "nwb", "bin_s": 0.05, **options}
    spec = validate(SourceSpec, {"name": "lab", "domain": "spikes", "files": [{"path": str(path)}], "split": split,
                                 "missing": "mask", "licence": "CC0-1.0", "options": chosen}, where="test")
    return read(spec, [path])


def test_images_are_tiles_of_every_bin_beside_other_stimuli(tmp_path: Path) -> None:
    data = look(session(tmp_path / "a.nwb"), stimulus=["tone"], frames=FRAMES)
    labels = [f"movie_y{i}_x{j}" for i in range(2) for j in range(3)]
    assert data["stimulus"].values.tolist() == ["tone", *labels]
    assert data["stimulus_unit"].values.tolist() == ["Hz", *6 * ["1"]]
    seen = data["stimulus_value"].values[0]
    np.testing.assert_array_equal(seen[:, 0], np.arange(40))
    # Tile y1 x2 is x 4 … 5 and y 2 … 3 of the file's (frame, x, y), from bin 8 on, until its last frame's time is over.
    np.testing.assert_allclose(seen[8:28, 6], 0.5 * MOVIE[:, 4:, 2:].mean((1, 2)), rtol=1e-6)
    assert np.isnan(seen[:8, 1:]).all()
    assert np.isnan(seen[28:, 1:]).all()


def test_images_at_a_rate(tmp_path: Path) -> None:
    data = look(session(tmp_path / "a.nwb"), frames={"screen": {"tiles": [1, 1], "unit": "1"}})
    np.testing.assert_allclose(data["stimulus_value"].values[0, :, 0], np.repeat(MOVIE.mean((1, 2)), 2), rtol=1e-6)


@pytest.mark.parametrize(("frames", "says"), [
    ({"tone": {"tiles": [1, 1]}}, "colour, film, movie, screen"),
    ({"film": {"tiles": [1, 1]}}, "files of their own"), ({"colour": {"tiles": [1, 1]}}, "whole tiles"),
    ({"movie": {"tiles": [4, 4]}}, "whole tiles"), ({"movie": {"tiles": [1, 1], "times": "when"}}, "the file tells")])
def test_images_that_do_not_fit_are_refused(frames: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        look(session(tmp_path / "a.nwb"), frames=frames)


def test_tiles_are_the_same_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tile_means(MOVIE, (3, 2), "frames", "test")
    monkeypatch.setattr(_spike_traces, "PART_BYTES", 3 * 4 * 24)
    np.testing.assert_array_equal(tile_means(MOVIE, (3, 2), "frames", "test"), whole)
    np.testing.assert_allclose(whole[4, 1, 0], MOVIE[4, 2:4, :2].mean(), rtol=1e-6)
