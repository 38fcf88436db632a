"""Stores that lie, links that lead away, disks that are full and builds that are killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from sciml.data import guard
from sciml.data.schema import AxisMeta, Block, Provenance, Splits, Variable
from sciml.data.store import Store, StoreDraft, open_store, write_store
from sciml.errors import InputError


def toy(value: float = 1.0, groups: int = 3) -> tuple[xr.Dataset, StoreDraft]:
    values = np.random.default_rng(0).normal(value, size=(groups, 4, 8)).astype(np.float32)
    data = xr.Dataset({"u": (("trajectory", "time", "x"), values)},
                      coords={"time": np.arange(4.0), "x": np.arange(8.0)})
    blocks = [Block(group=g, start=0, stop=4) for g in range(groups)]
    return data, StoreDraft(
        domain="fields", dataset="toy", group_dim="trajectory", groups=groups, dt=1.0,
        variables={"u": Variable(role="state", unit="1", dims=("time", "x"))},
        axes={"time": AxisMeta(kind="time", unit="s"), "x": AxisMeta(kind="space", unit="m")},
        splits=Splits(key="t", train=blocks[:1], validation=blocks[1:2], test=blocks[2:]),
        provenance=Provenance(builder="toy"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_store(*toy(), tmp_path / "toy.zarr")


def edit(store: Store, change: Callable[[dict[str, Any]], Any]) -> None:
    path = Path(store.url) / "zarr.json"
    root = json.loads(path.read_text())
    change(root)
    path.write_text(json.dumps(root))


def array(root: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = root["consolidated_metadata"]["metadata"]["u"]
    return found


def add_codec(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda root: array(root)["codecs"][0]["configuration"]["codecs"].append({"name": name, "configuration": {}})


def resize(shape: list[int], chunk: list[int]) -> Callable[[dict[str, Any]], Any]:
    def change(root: dict[str, Any]) -> None:
        array(root)["shape"] = shape
        array(root)["chunk_grid"]["configuration"]["chunk_shape"] = chunk
        array(root)["codecs"][0]["configuration"]["chunk_shape"] = chunk
    return change


def set_root(key: str, value: object) -> Callable[[dict[str, Any]], Any]:
    return lambda root: root.update({key: value})


def set_array(key: str, value: object) -> Callable[[dict[str, Any]], Any]:
    return lambda root: array(root).update({key: value})


def set_meta(key: str, value: object) -> Callable[[dict[str, Any]], Any]:
    return lambda root: root["attributes"]["sciml"].update({key: value})


@pytest.mark.parametrize(("change", "message"), [
    (lambda root: root["attributes"].pop("sciml"), r"\[sciml\]: found no such attribute; expected a finished store"),
    (set_meta("schema_version", 2), r"\[schema_version\]: found 2; expected at most 1. Fix: upgrade sciml"),
    (set_meta("schema_version", None), r"\[schema_version\]: found None"),
    (set_meta("groups", "many"), r"\[groups\]: found 'many'"),
    (set_meta("surprise", 1), r"\[surprise\]"),
    (set_meta("groups", 7), r"\[u\]: found 3 along trajectory; expected 7"),
    (set_root("zarr_format", 2), r"\[zarr.json\]: found zarr_format 2"),
    (set_root("node_type", "array"), r"node_type array; expected a Zarr v3 group"),
    (set_root("consolidated_metadata", None), r"\[consolidated_metadata\]: found none"),
    (add_codec("pickle"), r"\[u\]: found codec 'pickle'; expected codecs among"),
    (add_codec("numcodecs.pickle"), r"codec 'numcodecs.pickle'"),
    (add_codec("vlen-bytes"), r"codec 'vlen-bytes'"),
    (set_array("data_type", "object"), r"\[u\]: found data type 'object'"),
    (set_array("data_type", {"name": "numpy.datetime64"}), r"\[u\]"),
    (set_array("storage_transformers", [{"name": "x"}]), r"storage transformers"),
    (set_array("node_type", "group"), r"node_type 'group'; expected an array"),
    (set_array("codecs", "bytes"), r"\[u\]: found"),
    (set_array("chunk_grid", {"name": "rectangular"}), r"chunk grid 'rectangular'"),
    (set_array("dimension_names", ["trajectory", "x", "time"]), r"\[u\]: found \['trajectory', 'x', 'time'\]"),
    (resize([3, 4, -8], [1, 4, 8]), r"\[u\]: found shape"),
    (resize([3, 4, 1 << 50], [1, 4, 8]), r"an array that declares \d+ bytes"),
    (resize([3, 4, 1 << 40], [1, 4, 1 << 40]), r"a chunk that declares \d+ bytes|an array that declares"),
    (resize([3, 4, 1 << 29], [1, 1, 1 << 29]), r"a chunk that declares 2147483648 bytes"),
    (lambda root: root["consolidated_metadata"]["metadata"].update({"../../etc": array(root)}), r"found a path"),
    (lambda root: root["consolidated_metadata"]["metadata"].update({"u": 5}), r"\[u\]: found malformed metadata"),
    (lambda root: root["consolidated_metadata"]["metadata"].pop("u"), r"\[u\]: found no such array"),
])
def test_a_store_that_lies_is_refused(store: Store, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit(store, change)
    with pytest.raises(InputError, match=message):
        open_store(store.url)


def test_metadata_beyond_the_limit_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_METADATA_BYTES", 100)
    with pytest.raises(InputError, match="more than 100 bytes"):
        open_store(store.url)


def test_a_truncated_document_is_refused(store: Store) -> None:
    path = Path(store.url) / "zarr.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(InputError, match=r"\[zarr.json\].*expected JSON"):
        open_store(store.url)


def chunk_file(store: Store) -> Path:
    return next(p for p in (Path(store.url) / "u" / "c").rglob("*") if p.is_file())


def test_a_symlinked_chunk_is_refused(store: Store, tmp_path: Path) -> None:
    chunk = chunk_file(store)
    secret = tmp_path / "secret"
    chunk.rename(secret)
    chunk.symlink_to(secret)
    with pytest.raises(InputError, match=r"found a symbolic link to .*secret; expected a regular file"):
        open_store(store.url)


def test_a_symlinked_folder_is_refused(store: Store, tmp_path: Path) -> None:
    folder = Path(store.url) / "u" / "c"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        open_store(store.url)


def test_a_pipe_among_the_chunks_is_refused(store: Store) -> None:
    os.mkfifo(Path(store.url) / "u" / "c" / "1")
    with pytest.raises(InputError, match="found a special file"):
        open_store(store.url)


def test_a_link_to_the_store_itself_is_followed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(store.url)
    assert open_store(tmp_path / "latest").meta == store.meta


def test_a_flipped_byte_is_noticed_when_it_is_read(store: Store) -> None:
    chunk = chunk_file(store)
    data = bytearray(chunk.read_bytes())
    data[20] ^= 0x10
    chunk.write_bytes(data)
    fresh = open_store(store.url)
    with pytest.raises(RuntimeError, match=r"[Zz]std"):
        [fresh.read("u", group) for group in range(3)]


@pytest.mark.parametrize("place", ["nowhere.zarr", "empty", "file"])
def test_what_is_no_store_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"found no zarr.json; expected a Zarr v3 group. Fix: build it"):
        open_store(tmp_path / place)


def test_an_older_kind_of_zarr_is_refused(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "v2.zarr", zarr_format=2)
    with pytest.raises(InputError, match=r"found no zarr.json"):
        open_store(tmp_path / "v2.zarr")


def test_an_existing_store_is_not_overwritten_unless_asked(store: Store) -> None:
    with pytest.raises(InputError, match=r"found it exists.*--overwrite"):
        write_store(*toy(5.0), store.url)
    assert open_store(store.url).meta == store.meta
    assert write_store(*toy(5.0), store.url, overwrite=True).meta.moments["u"].mean > 4
    assert [p.name for p in Path(store.url).parent.iterdir()] == ["toy.zarr"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_store_is_never_overwritten(tmp_path: Path, store: Store, kind: str) -> None:
    place = tmp_path / "mine"
    if kind == "folder":
        place.mkdir()
        (place / "thesis.tex").write_text("years")
    elif kind == "file":
        place.write_text("years")
    else:
        place.symlink_to(store.url)
    with pytest.raises(InputError, match="expected a store to overwrite"):
        write_store(*toy(), place, overwrite=True)
    assert place.is_symlink() or place.is_file() or (place / "thesis.tex").read_text() == "years"
    assert open_store(store.url).meta == store.meta


def no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    place = tmp_path / "toy.zarr"
    before = write_store(*toy(), place).meta if existing else None
    from zarr.storage import LocalStore

    written = 0
    original = LocalStore.set

    async def limited(self: LocalStore, key: str, value: Any) -> None:
        nonlocal written
        written += len(value)
        if written > 800:
            no_space()
        await original(self, key, value)

    monkeypatch.setattr(LocalStore, "set", limited)
    with pytest.raises(InputError, match=r"toy.zarr: found no space left .*Fix: free space"):
        write_store(*toy(5.0), place, overwrite=True)
    monkeypatch.undo()
    assert written > 800
    assert [p.name for p in tmp_path.iterdir()] == (["toy.zarr"] if existing else [])
    if existing:
        assert open_store(place).meta == before


def test_a_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        meta = write_store(*toy(), disk / "toy.zarr").meta
        with pytest.raises(InputError, match="found no space left"):
            write_store(*toy(groups=4000), disk / "toy.zarr", overwrite=True)
        assert open_store(disk / "toy.zarr").meta == meta
        assert [p.name for p in disk.iterdir()] == ["toy.zarr"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("existing", [True, False])
def test_any_failure_leaves_what_was_there(tmp_path: Path, existing: bool) -> None:
    place = tmp_path / "toy.zarr"
    before = write_store(*toy(), place).meta if existing else None

    def refuse(written: xr.Dataset) -> tuple[str, ...]:
        assert written["u"].shape == (3, 4, 8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(*toy(5.0), place, overwrite=True, accept=refuse)
    assert [p.name for p in tmp_path.iterdir()] == (["toy.zarr"] if existing else [])
    if existing:
        assert open_store(place).meta == before


KILLED = """
    import sys, time
    sys.path.insert(0, {folder!r})
    from test_store_hostile import toy
    from sciml.data.store import write_store
    def wait(written):
        print("ready", flush=True)
        time.sleep(60)
        return ()
    write_store(*toy(5.0), {place!r}, overwrite=True, accept=wait)
"""


@pytest.mark.parametrize("existing", [True, False])
def test_a_killed_build_leaves_what_was_there_and_the_next_one_cleans_up(tmp_path: Path, existing: bool) -> None:
    place = tmp_path / "toy.zarr"
    before = write_store(*toy(), place).meta if existing else None
    script = textwrap.dedent(KILLED.format(folder=str(Path(__file__).parent), place=str(place)))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as build:
        assert build.stdout is not None
        assert build.stdout.readline() == "ready\n"
        leftover = [p for p in tmp_path.iterdir() if p.name.startswith(".toy.zarr.partial-")]
        assert len(leftover) == 1
        with pytest.raises(InputError, match="expected a finished store"):
            open_store(leftover[0] / "store")
        try:
            write_store(*toy(), place, overwrite=existing)
            assert leftover[0].exists(), "the folder of a build that still runs is left alone"
        finally:
            build.send_signal(signal.SIGKILL)
    assert build.returncode == -signal.SIGKILL
    assert leftover[0].exists()
    if before is not None:
        assert open_store(place).meta == before
    write_store(*toy(), place, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["toy.zarr"]


def test_a_kill_between_the_two_renames_loses_nothing(store: Store) -> None:
    path = Path(store.url)
    kept = path.with_name(".toy.zarr.replaced")
    path.rename(kept)
    with pytest.raises(InputError, match=r"Fix: an overwrite was interrupted; put the old one back: mv"):
        open_store(path)
    with pytest.raises(InputError, match="it exists"):
        write_store(*toy(5.0), path)
    assert open_store(path).meta == store.meta
    assert not kept.exists()


def test_a_remote_build_that_fails_leaves_nothing() -> None:
    def refuse(written: xr.Dataset) -> tuple[str, ...]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        write_store(*toy(), "memory://hostile/half.zarr", accept=refuse)
    with pytest.raises(InputError, match=r"no zarr.json"):
        open_store("memory://hostile/half.zarr")


def test_opening_is_quick_even_if_the_store_says_it_is_huge(store: Store) -> None:
    edit(store, resize([3, 4, 1 << 44], [1, 1, 1 << 20]))
    edit(store, lambda root: root["consolidated_metadata"]["metadata"]["x"].update(shape=[1 << 44]))
    started = time.monotonic()
    with pytest.raises(InputError, match=r"declares|coordinate of"):
        open_store(store.url)
    assert time.monotonic() - started < 5
