"""Who drives whom in a recording, by what a checkpoint predicts: links with sign, delay and p value."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciml.cli import console
from sciml.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sciml.data.schema import SplitName
    from sciml.data.store import Store
    from sciml.domains.spikes.binned import Binned
    from sciml.predictor import Predictor

METHODS = {"probability": "links", "evidence": "impulse response", "expected": "ablation", "attention": "attention"}


@click.command("connectivity")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", "store", required=True, metavar="STORE", help="Recording to read.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True,
              help="Where contexts are taken from; p values of ablation hold only where nothing was trained on.")
@click.option("--contexts", type=click.IntRange(min=1), default=16, show_default=True, help="Windows to average over.")
@click.option("--lags", type=click.IntRange(min=2), default=20, show_default=True,
              help="Bins after a spike; links act in the first half.")
@click.option("--links", type=click.IntRange(min=1), default=20, show_default=True, help="How many links to print.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="FILE.npz for the arrays, FILE.png for a picture.")
@click.option("--json", "json_", is_flag=True, help="Print links and scores as JSON.")
def connectivity(checkpoint: Path, store: str, split: SplitName, contexts: int, lags: int, links: int, out: Path | None,
                 json_: bool) -> None:
    """Read from CHECKPOINT who drives whom among the units of STORE.

    Links, of a model trained on tasks.masked: the probability that a unit drives another beyond what the model says
    that all units share, in the store's own bins, of all that it holds. Of one trained on tasks.next: impulse response,
    what one more spike of a source does to the log-rate of each unit; ablation, what a unit's next bin loses when the
    source is masked; attention, where a recipe has a token per unit. If STORE holds the true weights, the estimates are
    scored.
    """
    from sciml.checkpoint import load
    from sciml.data.store import open_store
    from sciml.memory import keep_freed

    if out is not None and out.suffix not in (".npz", ".png"):
        raise InputError("command line", key="--out", found=out.name, expected="FILE.npz or FILE.png",
                         fix="choose one of the two")
    keep_freed()
    opened = open_store(store)
    with console.progress("connectivity") as progress:
        found = estimate(load(checkpoint), opened, split, contexts, lags, progress)
    rows, scores = strongest(found, links), scored(found, opened)
    if out is not None:
        save(found, out)
    if json_:
        console.as_json({"links": rows, "scores": scores, "attention": "attention" in found,
                         "out": None if out is None else str(out)})
        return
    console.table(rows)
    if scores:
        console.table(scores)
    if "probability" not in found:
        click.echo("links are not read: they take tasks.masked with bins after, slots, and bins of at most 3 ms")
    if "expected" in found and "attention" not in found:
        click.echo("attention between units is not defined: it takes slots: 0 and the mixer axial")
    if out is not None:
        click.echo(out)
    console.next_command(f"sciml evaluate {checkpoint} --data {store}")


def estimate(predictor: Predictor, store: Store, split: SplitName, contexts: int, lags: int,
             progress: console.Progress) -> dict[str, np.ndarray]:
    """units ``(n,)`` and what `linked` and `responses` find. Raises `InputError` on a model that answers neither."""
    import numpy as np

    from sciml.domains.spikes.binned import Binned
    from sciml.domains.spikes.coupling_links import WIDEST_S
    from sciml.domains.spikes.coupling_shared import reads_shared_input

    adapter = predictor.adapter(store.meta.domain)
    if not isinstance(adapter, Binned) or not (reads_shared_input(adapter) or "next" in adapter.config.tasks):
        said = f"tasks {', '.join(adapter.config.tasks)} in bins" if isinstance(adapter, Binned) else "events"
        raise InputError("checkpoint", key="domain", found=f"{adapter.name}: {said}",
                         expected="spikes in bins, trained on tasks.masked (both ways, slots ≥ 1) or tasks.next",
                         fix="train a recipe with domains.spikes.tasks.masked")
    found = {"units": np.array(store.members("unit"))}
    wide = (store.meta.dt or 0.0) > WIDEST_S and "next" in adapter.config.tasks
    if reads_shared_input(adapter) and not wide:
        found |= linked(predictor, adapter, store, progress)
    if "next" in adapter.config.tasks:
        found |= responses(predictor, adapter, store, split, contexts, lags, progress)
    return found


def linked(predictor: Predictor, adapter: Binned, store: Store, progress: console.Progress) -> dict[str, np.ndarray]:
    """probability, link_effect and link_delay (s), ``(unit, source)``."""
    import numpy as np

    from sciml.domains.spikes.coupling_links import find_links
    from sciml.domains.spikes.coupling_shared import shared_log_rate
    from sciml.domains.spikes.layout import Layout

    layout, groups = Layout.of(store, None), range(store.meta.groups)
    counts = np.stack([layout.recorded(group).count for group in groups])
    shared = shared_log_rate(predictor.forward, adapter, adapter.open(store, "train"), groups, layout.bin_s)
    links = find_links(counts, layout.bin_s, np.stack(shared), progress=progress)
    return {"probability": links.probability, "link_effect": links.effect, "link_delay": links.delay}


def responses(predictor: Predictor, adapter: Binned, store: Store, split: SplitName, contexts: int, lags: int,
              progress: console.Progress) -> dict[str, np.ndarray]:
    """evidence, effect, delay (s), p, response ``(unit, source, lag)``, expected, gain, ablation_p and, where it is
    defined, attention, each ``(unit, source)`` if nothing else is said."""
    from dataclasses import replace

    import numpy as np

    from sciml.domains.spikes.config import WindowConfig
    from sciml.domains.spikes.connectivity import ablation, impulse_response

    own = adapter.config.tasks["next"]
    windows = replace(adapter.open(store, split), tasks={"next": own}, train=False, floor=False)
    short = replace(windows, tasks={"next": WindowConfig(before=own.before, scored=lags)})
    total = 2 * contexts
    response = impulse_response(predictor.forward, adapter, short, contexts, lags,
                                progress=lambda done, of: progress(done, total))
    masked = ablation(predictor.forward, adapter, windows, contexts,
                      progress=lambda done, of: progress(contexts + done, total))
    found = {"bin_s": np.array(response.bin_s), "evidence": response.evidence, "effect": response.effect,
             "delay": response.delay, "p": response.p, "response": response.log_rate, "expected": masked.expected,
             "gain": masked.gain, "ablation_p": masked.p}
    weights = None if adapter.config.slots else attention_of(predictor, adapter, windows, contexts)
    return found if weights is None else {**found, "attention": weights}


def attention_of(predictor: Predictor, adapter: Binned, windows: Any, contexts: int) -> np.ndarray | None:
    """``(unit, source)`` mean attention over windows; None where no block attends along units."""
    import numpy as np

    from sciml.mixers.axial import Axial
    from sciml.operator.attention import attention_weights

    if not any(isinstance(module, Axial) for module in predictor.operator.modules()):
        return None
    made = []
    for index in np.unique(np.linspace(0, len(windows) - 1, contexts).round().astype(int)):
        batch = adapter.encode(windows.draw(int(index), *(np.random.default_rng(0) for _ in range(2))))
        made.append(attention_weights(predictor.operator, batch, "unit").double().numpy())
    weights = np.mean(made, axis=0)
    np.fill_diagonal(weights, np.nan)
    return np.asarray(weights)


def strongest(found: dict[str, np.ndarray], number: int) -> list[dict[str, Any]]:
    """Rows of the likeliest links, or of the pairs with the most evidence."""
    import numpy as np

    by = found["probability"] if "probability" in found else np.abs(found["evidence"])
    size, units = np.nan_to_num(by, nan=-1.0), found["units"]
    columns = {"probability": "probability", "link_effect": "effect", "link_delay": "delay_ms", "effect": "response",
               "delay": "response_delay_ms", "p": "response_p", "expected": "lost_nats_per_spike",
               "ablation_p": "lost_p"}
    return [{"source": str(units[s]), "target": str(units[t]),
             **{name: float(found[key][t, s]) * (1e3 if name.endswith("_ms") else 1.0)
                for key, name in columns.items() if key in found}}
            for t, s in (divmod(int(i), len(size)) for i in np.argsort(-size, axis=None)[:number]) if t != s]


def scored(found: dict[str, np.ndarray], store: Store) -> list[dict[str, Any]]:
    """A row per method against the store's true weights; none if it doesn't hold them."""
    if "weight" not in store.meta.variables:
        return []
    import numpy as np

    from sciml.domains.spikes.connectivity_scores import Estimate, score_connectivity

    weight = store.read("weight", 0)
    delay = store.read("delay", 0) if "delay" in store.meta.variables else None
    beside = {"probability": {"effect": "link_effect", "delay": "link_delay", "probability": "probability"},
              "evidence": {"effect": "effect", "delay": "delay", "p_value": "p"}, "expected": {"p_value": "ablation_p"}}
    rows = []
    for key in (key for key in METHODS if key in found):
        parts = {name: found[part] for name, part in beside.get(key, {}).items()}
        bin_s = store.meta.dt if key == "probability" else found["bin_s"]
        result = score_connectivity(Estimate(np.abs(found[key]), **parts), weight, delay, dt=float(bin_s or 0.0))
        chosen = result.by_probability or result.by_p_value
        said = asdict(chosen) if chosen is not None else {}
        rows.append({"method": METHODS[key], "auroc": result.auroc, "auprc": result.auprc, "density": result.density,
                     **{k: said.get(k) for k in ("num_detected", "precision", "recall", "sign_accuracy",
                                                 "delay_accuracy")}})
    return rows


def save(found: dict[str, np.ndarray], path: Path) -> None:
    """Arrays (``.npz``, no pickle) or a picture of the matrices (``.png``), written whole or not at all."""
    import numpy as np

    from sciml.data.files import replacing

    with replacing(path) as partial:
        if path.suffix == ".npz":
            np.savez_compressed(partial, **found)  # type: ignore[arg-type]
        else:
            picture(found, partial)


def picture(found: dict[str, np.ndarray], path: Path) -> None:
    """Matrices of all pairs that were asked for, targets down, sources across."""
    import numpy as np
    from matplotlib.figure import Figure

    panels: list[tuple[np.ndarray, str, str, float, float]] = []
    if "probability" in found:
        signed = found["probability"] * np.sign(found["link_effect"])
        panels.append((signed, "links: probability, signed by effect", "RdBu_r", -1.0, 1.0))
    if "evidence" in found:
        top = float(np.nanpercentile(found["expected"], 99.5))
        panels += [(found["evidence"], "impulse response: evidence", "RdBu_r", -6.0, 6.0),
                   (found["expected"], "ablation: nats per source spike", "Greys", 0.0, top)]
    drawing = Figure(figsize=(5 * len(panels), 4.6), layout="constrained")
    for place, (values, title, colors, low, high) in enumerate(panels, 1):
        ax = drawing.add_subplot(1, len(panels), place)
        image = ax.imshow(values, interpolation="nearest", cmap=colors, vmin=low, vmax=high)
        ax.set(title=title, xlabel="source", ylabel="target")
        drawing.colorbar(image, ax=ax, shrink=0.85)
    drawing.savefig(path, dpi=110)


PLUGIN = connectivity
