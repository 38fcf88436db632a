"""The page about a run of spikes: rasters, statistics, correlations, predicted rates, decoded behaviour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciml.report import build, spikes
from sciml.report.page import domain_of

RNG = np.random.default_rng(0)
RATE = np.array([0.2, 1.0, 0.5])


def write(path: Path, data: dict[str, tuple[tuple[str, ...], np.ndarray]], **coords: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    xr.Dataset(data, coords=coords, attrs={"domain": "spikes"}).to_zarr(path, zarr_format=3, consolidated=False)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a rollout of 6 s, predicted rates and behaviour."""
    cells, units = ("sample", "time", "unit"), np.array(["u0", "u1", "u2"], object)
    time = ("sample", "time"), 3.0 + 0.02 * np.tile(np.arange(300.0), (2, 1)), {"units": "s"}
    counts = RNG.poisson(RATE, (2, 2, 300, 3)).astype(np.float32)
    write(tmp_path / "rollout/net.zarr", {"count": (cells, counts[0]), "count_truth": (cells, counts[1]),
                                          "rate": (cells, counts[0] * 0 + RATE)}, unit=units, time=time)
    write(tmp_path / "forecast/rates.zarr", {
        "count": (cells, counts[0] * 0 + RATE), "count_truth": (cells, counts[1]),
        "count_baseline": (cells, counts[0] * 0 + 0.5)}, unit=units)
    values = RNG.normal(size=(2, 50, 1))
    write(tmp_path / "forecast/velocity.zarr", {
        "behaviour_value": (("sample", "time", "behaviour"), values),
        "behaviour_value_truth": (("sample", "time", "behaviour"), values)},
        behaviour=np.array(["vel_x"], object), behaviour_unit=("behaviour", np.array(["cm/s"], object)))
    return tmp_path


def test_page(run: Path) -> None:
    page = build(run, run / "report.html").read_text(encoding="utf-8")
    for title in ("Raster, net", "Generated beside recorded, net", "Correlations, net", "Predicted rates, rates",
                  "Decoded behaviour, velocity"):
        assert f"<h4>{title}</h4>" in page
    assert "No rollout of fields" in page
    assert "vel x, cm/s" in page


def test_statistics(run: Path) -> None:
    """Of equal activities the rates and pairs correlate fully; a tick is drawn for every spike."""
    store = xr.open_zarr(run / "rollout/net.zarr", consolidated=False)
    values = tuple(map(str, store["count"].dims)), store["count"].values
    same = write(run / "same.zarr", {"count": values, "count_truth": values}, time=store["time"].variable)
    raster, statistics, correlations = spikes.generated("same", same)
    assert "correlation of the units' rates 1.000, over 6 s" in statistics.caption.lower()
    assert "correlate by 1.000" in correlations.caption
    drawn = int(store["count"].isel(sample=0).values.sum())
    ticks = [path.count("M ") for path in raster.svg.split('d="') if path.count("M ") > 50]
    assert ticks == [drawn, drawn]


def test_unit_order_and_absent_parts(run: Path) -> None:
    (picture,) = spikes.predicted("rates", run / "forecast/rates.zarr", "smoothed rate")
    assert picture.svg.index("u1") < picture.svg.index("u2") < picture.svg.index("u0")
    assert "smoothed rate" in picture.svg
    assert spikes.generated("rates", run / "forecast/velocity.zarr") == []
    assert spikes.predicted("net", write(run / "none.zarr", {"gain": (("sample", "token"), np.zeros((1, 3)))})) == []
    assert domain_of(write_other(run / "other.zarr")) == "series"


def write_other(path: Path) -> Path:
    xr.Dataset({"value": ("time", np.zeros(2))}, attrs={"domain": "series"}).to_zarr(path, zarr_format=3,
                                                                                     consolidated=False)
    return path


def events(path: Path, *ends: str) -> Path:
    """A rollout of 80 events, stopped after 60, with what was recorded then."""
    data: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    dims = ("sample", "time")
    for end in ends:
        time, unit = np.cumsum(RNG.exponential(0.02, (1, 80)), 1), RNG.integers(0, 3, (1, 80)).astype(float)
        if not end:
            time[0, 60:], unit[0, 60:] = np.nan, np.nan
        data |= {f"spike_time{end}": (dims, time), f"spike_unit{end}": (dims, unit)}
    return write(path, data, time=(dims, data["spike_time"][1]), unit=np.array(["a", "b", "c"], object))


def test_events_beside_the_recording(tmp_path: Path) -> None:
    """Both rasters over the time that both last: a tick for every event that either has in it."""
    path = events(tmp_path / "events.zarr", "", "_truth")
    raster, statistics, correlations = spikes.generated("events", path)
    store = xr.open_zarr(path, consolidated=False).isel(sample=0)
    ours, truth = (store[f"spike_time{end}"].values for end in ("", "_truth"))
    start, stop = min(ours[0], truth[0]), min(np.nanmax(ours), truth[-1])
    last = start + np.ceil((stop - start) / 0.02) * 0.02
    drawn = [path.count("M ") for path in raster.svg.split('d="') if path.count("M ") > 20]
    assert drawn == [int((truth <= last).sum()), int((ours <= last).sum())]
    assert "generated" in raster.svg
    assert statistics.title == "Generated beside recorded, events"
    assert "bins of 0.02 s" in correlations.caption


def test_events_alone(tmp_path: Path) -> None:
    """Without a recorded counterpart the page says so; where the rollout stopped, nothing is drawn."""
    (raster,) = spikes.generated("events", events(tmp_path / "events.zarr", ""))
    assert "isn't in the rollout" in raster.caption
    assert max(part.count("M ") for part in raster.svg.split('d="')) == 60
