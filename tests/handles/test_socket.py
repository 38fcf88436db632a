"""A checkpoint behind i-PI's protocol gives ASE's own driver what the calculator gives it in one process."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sciml import checkpoint, cli
from sciml.data.store import Store
from sciml.errors import InputError
from tests.handles import toy

ase = pytest.importorskip("ase")
from ase.io import write  # noqa: E402

from sciml.handles.ase import calculator  # noqa: E402
from sciml.handles.socket import Address  # noqa: E402

SECONDS = 60.0
CELL = np.array([[7.0, 0.5, 0], [0, 7.5, 0], [0.3, 0, 8.0]])


@pytest.fixture(scope="module")
def model(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(tmp_path_factory.mktemp("served") / "model", toy.network(molecules))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("kind", "periodic"), [("unix", False), ("tcp", True)])
def test_a_driver_in_another_process_gets_energy_forces_and_stress(model: Path, tmp_path: Path, kind: str,
                                                                   periodic: bool) -> None:
    from ase.calculators.socketio import SocketIOCalculator

    atoms = ase.Atoms(numbers=toy.NUMBERS, positions=toy.TETRAHEDRON, cell=CELL, pbc=periodic)
    write(tmp_path / "start.xyz", atoms)
    where: dict[str, Any] = {"port": free_port()} if kind == "tcp" else {"unixsocket": f"sciml_{uuid.uuid4().hex[:8]}"}
    address = f"127.0.0.1:{where['port']}" if kind == "tcp" else f"unix:{where['unixsocket']}"
    words = ["potential", str(model), "--socket", address, "--structure", str(tmp_path / "start.xyz"), "--timeout",
             str(SECONDS), "--json"]
    started: list[subprocess.Popen[str]] = []

    def launch(*_: Any, **__: Any) -> Any:
        started.append(subprocess.Popen([sys.executable, "-c", f"from sciml.cli import main; main({words!r})"],
                                        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]))
        return started[0]

    alone, found = calculator(model), []
    with SocketIOCalculator(timeout=SECONDS, launch_client=launch, **where) as driver:
        atoms.calc = driver
        for shift in (0.0, 0.1):
            atoms.positions[0] += shift
            found.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress() if periodic else 0.0))
    assert started[0].wait(SECONDS) == 0
    assert started[0].stdout is not None
    assert '"evaluations": 2' in started[0].stdout.read()
    started[0].stdout.close()
    expected = ase.Atoms(numbers=toy.NUMBERS, positions=toy.TETRAHEDRON, cell=CELL, pbc=periodic, calculator=alone)
    for (energy, forces, stress), shift in zip(found, (0.0, 0.1)):
        expected.positions[0] += shift
        assert energy == pytest.approx(expected.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(forces, expected.get_forces(), atol=1e-6)
        if periodic:
            np.testing.assert_allclose(stress, expected.get_stress(), atol=1e-8)


@pytest.mark.parametrize("text", ["unix:", "localhost", "localhost:0", "localhost:99999", ":31415", "host:port"])
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="unix:NAME or HOST:PORT"):
        Address.of(text)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # ASE leaves that socket open
def test_where_nobody_listens_it_says_so(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "start.xyz", ase.Atoms(numbers=toy.NUMBERS, positions=toy.TETRAHEDRON))
    began = time.monotonic()
    assert cli.run(["potential", str(model), "--socket", f"127.0.0.1:{free_port()}", "--structure",
                    str(tmp_path / "start.xyz")]) == 1
    assert "start the driver first" in capsys.readouterr().err
    assert time.monotonic() - began < SECONDS


def test_a_file_that_ase_cannot_read_is_refused(model: Path, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.xyz").write_text("nothing\n", encoding="utf-8")
    assert cli.run(["potential", str(model), "--socket", "unix:x", "--structure", str(tmp_path / "no.xyz")]) == 1
    assert "a file of atoms that ASE reads" in capsys.readouterr().err
