"""A checkpoint as the force engine of LAMMPS (``fix ipi``), i-PI and whatever else speaks its protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sciml.errors import InputError
from sciml.handles.ase import require_ase

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator


@dataclass(frozen=True)
class Address:
    """Where a driver listens: the UNIX socket ``/tmp/ipi_NAME``, or host and port."""

    name: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def of(cls, text: str) -> Self:
        """Raises `InputError` for what is neither ``unix:NAME`` nor ``HOST:PORT``.

        >>> Address.of("unix:driver").name, Address.of("localhost:31415").port
        ('driver', 31415)
        """
        host, _, rest = text.rpartition(":")
        if host == "unix" and rest:
            return cls(name=rest)
        if host and rest.isascii() and rest.isdigit() and 0 < int(rest[:6]) < 65536:
            return cls(host=host, port=int(rest))
        raise InputError("command line", key="--socket", found=repr(text), expected="unix:NAME or HOST:PORT",
                         fix="give the address that the driver listens at")


def read_structure(path: str | Path) -> Atoms:
    """Whatever ASE reads; the last frame of several: elements in the driver's order, periodic directions, and charge
    and spin in ``info``. Raises `InputError` for what ASE can't read."""
    require_ase()
    import ase.io

    try:
        found = ase.io.read(path)
    except Exception as error:  # ASE raises what its readers happen to
        raise InputError(path, key="structure", found=" ".join(f"{type(error).__name__}: {error}".split())[:160],
                         expected="a file of atoms that ASE reads", fix="give the driver's structure as .xyz or .cif"
                         ) from None
    atoms: Atoms = found[-1] if isinstance(found, list) else found
    return atoms


def serve(calculator: Calculator, atoms: Atoms, address: Address, *, timeout: float | None = None) -> int:
    """Answer a driver until it says that it is done; returns how many times. Places and cell come from the driver,
    elements and periodic directions from `atoms`; energy, forces and, with three periodic directions, the virial (minus
    stress times volume; else zeros) go back, in atomic units (Kapil et al., Comput. Phys. Commun. 236, 214, 2019).

    timeout: seconds to wait for the driver at most. Raises `InputError` if nobody listens, or nobody answers in time.
    """
    require_ase()
    from ase.calculators.socketio import SocketClient, SocketClosed

    atoms = atoms.copy()
    atoms.calc = calculator
    with_stress = bool(atoms.pbc.all()) and "stress" in calculator.implemented_properties
    where = f"unix:{address.name}" if address.name else f"{address.host}:{address.port}"
    answered = 0
    try:
        client = SocketClient(unixsocket=address.name or None, host=address.host, port=address.port or None,
                              timeout=timeout)
        for _ in client.irun(atoms, use_stress=with_stress):
            answered += 1
    except SocketClosed:
        pass  # a driver that ends without a farewell
    except InputError:
        raise
    except (OSError, ValueError) as error:  # the second: places of another number of atoms
        raise InputError(where, key="socket", found=" ".join(str(error).split()),
                         expected=f"a driver that listens, and sends places of {len(atoms)} atoms",
                         fix="start the driver first; give the structure that it has") from None
    return answered
