"""The page about a run: whole, offline, and honest about what is missing or no better than a baseline."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciml.errors import InputError
from sciml.report import build, machine, maps, scores
from sciml.report.bench import Bench, Row, load
from sciml.report.run import read_log


def vorticity(samples: int, steps: int, size: int, seed: int) -> np.ndarray:
    """Smooth periodic fields ``(sample, step, x, y)`` that drift."""
    rng = np.random.default_rng(seed)
    k = np.fft.fftfreq(size, 1 / size)
    radius = np.hypot(k[:, None], k)
    amplitude = np.where(radius > 0, radius / (1 + (radius / 4) ** 4), 0)
    noise = amplitude * np.exp(2j * np.pi * rng.random((samples, 1, size, size)))
    drift = rng.normal(0, 0.12, (size, size)) * np.arange(1, steps + 1)[:, None, None]
    field = np.fft.ifft2(noise * np.exp(1j * drift), norm="forward").real
    return (6 * field / field.std()).astype(np.float32)


def write_rollout(path: Path, *, samples: int = 2, steps: int = 6, size: int = 16) -> None:
    truth = vorticity(samples, steps, size, 0)
    noise = vorticity(samples, steps, size, 1)
    growth = np.linspace(0.01, 0.4, steps, dtype=np.float32)[:, None, None]
    x = np.arange(size) / size
    attrs = {"units": "1/s", "long_name": "vorticity"}
    dims = ("sample", "time", "x", "y")
    space = {"units": "1", "period": 1.0}
    xr.Dataset(
        {"vorticity": (dims, truth + growth * noise, attrs), "vorticity_truth": (dims, truth, attrs)},
        coords={"x": ("x", x, space), "y": ("y", x, space),
                "time": (("sample", "time"), np.tile(np.arange(1, steps + 1) * 0.5, (samples, 1)), {"units": "s"})},
    ).to_zarr(path, zarr_format=3, consolidated=False)


def write_forecast(path: Path, *, samples: int = 3, history: int = 60, horizon: int = 24) -> None:
    rng = np.random.default_rng(0)
    weeks = np.arange(history + horizon + 20 * samples)
    walk = rng.normal(0, 0.05, (len(weeks), 7)).cumsum(0)
    level = 3 + 2 * np.cos(weeks[:, None] * 2 * np.pi / 52 - np.arange(7)) + walk
    days = np.datetime64("2014-01-05", "ns") + weeks * np.timedelta64(7, "D")
    starts = np.arange(samples) * 20
    known = np.stack([level[s:s + history] for s in starts])
    truth = np.stack([level[s + history:s + history + horizon] for s in starts])
    dims = ("sample", "time", "variate")
    xr.Dataset(
        {"value": (dims, truth + rng.normal(0, 0.2, truth.shape), {"units": "%"}), "value_truth": (dims, truth),
         "value_baseline": (dims, truth + rng.normal(0, 0.5, truth.shape)),
         "history": (("sample", "history_time", "variate"), known)},
        coords={"variate": np.array([f"region_{i}" for i in range(7)], object),
                "variate_unit": ("variate", np.array(["%"] * 7, object)),
                "valid_time": (("sample", "time"), np.stack([days[s + history:s + history + horizon] for s in starts])),
                "past_time": (("sample", "history_time"), np.stack([days[s:s + history] for s in starts]))},
    ).to_zarr(path, zarr_format=3, consolidated=False)


def write_log(path: Path, steps: int = 200) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, steps + 1):
        losses = {"navier_stokes": 0.02 + np.exp(-step / 40), "ili": 0.4 + 0.5 * np.exp(-step / 20)}
        noisy = {name: float(value * np.exp(rng.normal(0, 0.2))) for name, value in losses.items()}
        lines.append({"step": step, "loss": sum(noisy.values()), "losses": noisy, "learning_rate": 1e-3,
                      "seconds": step * 0.9, "samples": 8})
        if step % 20 == 0:
            lines.append({"step": step, "validation": losses, "baseline": {"navier_stokes": 1.0, "ili": 0.47}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def row(question: str, metric: str, value: float, baseline: float, verdict: str,
        name: str = "persistence") -> dict[str, object]:
    margin = 0.1 * abs(value - baseline) if verdict in ("better", "worse") else 1.5 * abs(value - baseline)
    return {"domain": "fields", "dataset": "navier_stokes", "question": question, "metric": metric, "unit": "1",
            "samples": 48, "value": value, "baseline": baseline, "baseline_name": name, "ratio": value / baseline,
            "low": value - baseline - margin, "high": value - baseline + margin, "blocks": 12, "verdict": verdict}


def write_run(run: Path, *, size: int = 16, steps: int = 6) -> Path:
    """A run folder with everything but a checkpoint, and a fine-tuned one inside with little."""
    (run / "evaluation").mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: demo\nseed: 3\ndata:\n- store: runs/demo/navier_stokes.zarr\n"
                                     "- store: ili.zarr\ntrain:\n  steps: 200\n")
    write_log(run / "train.jsonl")
    curve = np.linspace(0.02, 0.5, steps)
    fields = {"rows": [row("one_step", "relative_l2", 0.0212, 0.241, "better"),
                       row("rollout", "gmean_relative_l2", 0.13, 0.77, "better"),
                       row("rollout", "correlation_time", 42.0, 38.0, "no difference seen")],
              "curves": {"rollout/relative_l2": {"step": list(range(1, steps + 1)), "ours": curve.tolist(),
                                                 "baseline": (0.24 + curve).tolist()}}}
    ridge = {"rows": [row("96", "mse", 0.471, 0.466, "too few independent blocks", "ridge"),
                      row("24", "mase", 1.92, 1.41, "worse", "ridge")], "curves": {}}
    (run / "evaluation" / "navier_stokes.json").write_text(json.dumps(fields))
    (run / "evaluation" / "ili.json").write_text(json.dumps(ridge))
    write_rollout(run / "rollout" / "navier_stokes.zarr", size=size, steps=steps)
    write_forecast(run / "forecast" / "ili.zarr")
    (run / "finetune").mkdir()
    (run / "finetune" / "recipe.yaml").write_text("name: viscous\ndata:\n- store: viscous.zarr\ntrain: {steps: 9}\n")
    return run


class Page(HTMLParser):
    """What a page asks a browser for, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.requests: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.labels: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.text = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        for key in ("src", "href", "xlink:href", "poster", "data", "action"):
            value = found.get(key) or ""
            (self.anchors if value.startswith("#") else self.requests).append(value)
        if tag == "img":
            self.images.append(found)
        if tag == "svg":
            self.labels.append(found.get("aria-label") or "")
        if found.get("id"):
            self.ids.append(found["id"] or "")

    def handle_data(self, data: str) -> None:
        self.text += " ".join(data.split()) + " "


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(build(run, run / "report.html"))


def test_page_asks_the_network_for_nothing(page: Page) -> None:
    assert all(not value or value.startswith("data:") for value in page.requests)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|<link[^>]+stylesheet", page.html)


def test_page_is_small_and_its_ids_are_unique(page: Page) -> None:
    assert len(page.html.encode()) < 6_000_000
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert set(page.anchors) <= {f"#{name}" for name in page.ids}


def test_every_picture_says_what_it_shows(page: Page) -> None:
    assert len(page.images) == 2 * 3 * 6
    assert page.images[0]["alt"] == "Predicted vorticity at step 1 · t = 0.5 s"
    assert all(image["alt"] for image in page.images)
    assert all(page.labels)


def test_page_shows_each_section(page: Page) -> None:
    for words in ("relative L2", "Training loss", "Validation", "step 6", "Nyquist", "region 0, %", "Jan ’15",
                  "persistence", "3 min 0 s", "1,600".replace(",", " "), "store: runs/demo/navier_stokes.zarr"):
        assert words in page.html, words


def test_a_model_that_does_not_beat_its_baseline_is_said_so(page: Page) -> None:
    assert "On ili the model does not beat ridge: on no score of 2 is it better, on 1 it is worse" in page.text
    assert "On navier_stokes the model beats persistence on 2 of 3 scores, 1 with no difference seen" in page.text


def test_absent_parts_are_named(page: Page, run: Path) -> None:
    for place in ("evaluation/", "train.jsonl", "rollout/", "forecast/"):
        assert f"{run}/finetune/{place}" in page.text
    assert "The run holds no checkpoint." in page.text


def test_no_folder_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        build(tmp_path / "nowhere", tmp_path / "report.html")
    with pytest.raises(InputError, match=r"none of recipe\.yaml"):
        build(tmp_path, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_names_from_a_run_are_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    (tmp_path / "evaluation").mkdir()
    rows = [row("one_step", hostile, 0.1, 0.2, "better", hostile)]
    curves = {hostile: {"step": [1, 2], "ours": [0.1, 0.2], "baseline": [0.3, 0.4]}}
    content = {"rows": rows, "curves": curves, "warnings": [hostile]}
    (tmp_path / "evaluation" / "lab.json").write_text(json.dumps(content))
    page = build(tmp_path, tmp_path / "report.html").read_text()
    assert "alert(1)" in page
    assert hostile not in page


def test_rollout_that_blew_up_without_truth_is_shown_in_grey(tmp_path: Path) -> None:
    path = tmp_path / "rollout" / "flow.zarr"
    field = vorticity(1, 4, 16, 0)
    field[:, 2:] = np.nan
    xr.Dataset({"vorticity": (("sample", "time", "x", "y"), field)}, attrs={"stopped": {"0": 3}}).to_zarr(
        path, zarr_format=3, consolidated=False)
    page = Page(build(tmp_path, tmp_path / "report.html"))
    assert "The rollout stopped at step 3" in page.text
    assert "100% of the prediction is not finite" in page.html
    assert len(page.images) == 4
    assert "Neither an evaluation with curves nor a rollout beside the truth" in page.text


def test_truth_that_ends_early_is_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "rollout" / "flow.zarr"
    field = vorticity(1, 4, 16, 0)
    truth = field * np.float32(0.5)
    truth[:, 2:] = np.nan
    dims = ("sample", "time", "x", "y")
    xr.Dataset({"vorticity": (dims, field), "vorticity_truth": (dims, truth)}).to_zarr(path, zarr_format=3,
                                                                                     consolidated=False)
    page = Page(build(tmp_path, tmp_path / "report.html"))
    assert "The truth is known for the first steps only" in page.text
    assert len(page.images) == 2 * 3 + 2
    assert "Model from 1 to 1 over 2 steps" in page.text


@pytest.mark.parametrize("shape", [(24,), (12, 10, 8)], ids=["1-D", "3-D"])
def test_fields_of_other_ranks_are_shown(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    dims = ("sample", "time", *"xyz"[:len(shape)])
    truth = rng.normal(size=(1, 3, *shape)).astype(np.float32)
    coords = {name: (name, np.arange(n) / n, {"units": "m"}) for name, n in zip("xyz", shape)}
    xr.Dataset({"density": (dims, truth + 0.1), "density_truth": (dims, truth)}, coords=coords).to_zarr(
        tmp_path / "rollout" / "flow.zarr", zarr_format=3, consolidated=False)
    page = Page(build(tmp_path, tmp_path / "report.html"))
    assert len(page.images) == (3 if len(shape) == 1 else 9)
    assert ("a Hann window was applied" in page.text) == (len(shape) == 3)


def test_predicted_and_true_share_colours_and_error_is_zero_where_they_agree() -> None:
    field = vorticity(1, 1, 16, 0)[0, 0].astype(np.float64)
    scale = maps.value_scale([field], "1/s")
    assert scale.low == -scale.high
    assert maps.value_scale([np.abs(field)], "K").palette != scale.palette
    errors = maps.error_scale([field - field], "1/s")
    assert (errors.low, errors.high) == (-1.0, 1.0)
    assert maps.picture(field, scale) == maps.picture(field.copy(), scale)


def test_picture_has_x_to_the_right_and_y_up() -> None:
    import base64
    from io import BytesIO

    from PIL import Image

    values = np.zeros((3, 2))
    values[2, 0] = 1.0
    values[0, 1] = np.nan
    src = maps.picture(values, maps.Scale(0.0, 1.0, "cividis", "1"))
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(src.partition(",")[2]))))
    assert pixels.tolist() == [[0, 1, 1], [1, 1, 255]]


def test_log_adds_the_time_of_resumed_parts_and_drops_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = [{"step": 1, "losses": {"a": 1.0}, "seconds": 2.0, "samples": 4},
             {"step": 2, "losses": {"a": 0.5}, "seconds": 4.0, "samples": 4},
             {"step": 3, "losses": {"b": 0.4}, "seconds": 1.5, "samples": 4}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text + '{"step": 4, "loss')
    log = read_log(path)
    assert log is not None
    assert (log.seconds, log.samples, log.steps) == (5.5, 12, 3)
    assert [points[1].tolist() for points in log.losses.values()] == [[1.0, 0.5], [0.4]]
    path.write_text("{broken\n" + text)
    with pytest.raises(InputError, match="line 1"):
        read_log(path)


@pytest.mark.parametrize(("verdicts", "tone"), [
    (["better", "better"], "better"), (["better", "worse"], "worse"), (["no difference seen"] * 2, "worse"),
    (["too few independent blocks"] * 2, "open"), (["better", "too few independent blocks"], "open")])
def test_tone_of_a_verdict(verdicts: list[str], tone: str) -> None:
    rows = [row("one_step", f"m{i}", 0.1, 0.2, verdict) for i, verdict in enumerate(verdicts)]
    assert scores.sentence("lab", {"rows": rows})[1] == tone


def test_scores_that_are_not_numbers_are_printed_as_dashes() -> None:
    lost = {**row("rollout", "relative_l2", 0.1, 0.2, "worse"), "value": float("nan"), "ratio": float("nan"),
            "low": float("nan"), "high": float("nan")}
    printed = scores.table("lab", {"rows": [lost]}).rows[0]
    assert (printed.value, printed.ratio, printed.interval, printed.plot) == ("–", "–", "–", "")


def test_bench_goes_on_row_by_row_and_keeps_the_old_result_until_it_is_done(tmp_path: Path) -> None:
    bench = Bench.load_or_new("lab", seeds=(0,), place=tmp_path)
    bench.add(Row(metric="etth1/96/mse", unit="1", ours=0.4, peer=0.5, peer_name="ridge"))
    assert not bench.path.exists()
    again = Bench.load_or_new("lab", seeds=(0,), place=tmp_path)
    assert again.has("etth1/96/mse", "ridge")
    assert not again.has("etth1/96/mse", "dlinear")
    again.add(Row(metric="etth1/96/mse", unit="1", ours=0.3, peer=0.5, peer_name="ridge"))
    assert [row.ratio for row in load(again.finish()).rows] == [0.6]
    assert [p.name for p in tmp_path.iterdir()] == ["lab.json"]
    assert not Bench.load_or_new("lab", seeds=(0,), place=tmp_path).has("etth1/96/mse", "ridge")


def test_bench_of_other_seeds_or_versions_starts_anew(tmp_path: Path) -> None:
    Bench.load_or_new("lab", seeds=(0,), place=tmp_path).add(Row(metric="a/b/c", unit="1", ours=1.0))
    assert not Bench.load_or_new("lab", seeds=(1,), place=tmp_path).has("a/b/c")


def test_bench_keeps_finished_rows_of_parts_that_are_not_measured_now(tmp_path: Path) -> None:
    bench = Bench.load_or_new("lab", place=tmp_path)
    for metric in ("wave/one_step/mse", "machine/gemm/wave", "darcy/steady/mse"):
        bench.add(Row(metric=metric, unit="1", ours=1.0))
    bench.finish()
    again = Bench.load_or_new("lab", seeds=(0, 1), place=tmp_path, parts=("wave",))
    assert [row.metric for row in again.results.rows] == ["darcy/steady/mse"]
    assert again.results.seeds == (0, 1)
    other = load(bench.path).model_copy(update={"versions": {"torch": "1.0"}})
    bench.path.write_text(other.model_dump_json())
    assert not Bench.load_or_new("lab", place=tmp_path, parts=("wave",)).results.rows


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "lab", "rows": [{"metric": "no slashes"}]}'])
def test_bench_results_of_another_shape_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lab.json"
    path.write_text(text)
    with pytest.raises(InputError):
        load(path)


def test_gemm_rate_is_a_plausible_number() -> None:
    assert 0.1 < machine.gemm_gflops(size=128, seconds=0.02) < 100_000
