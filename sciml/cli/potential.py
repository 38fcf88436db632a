"""Serve a checkpoint's energy and forces to LAMMPS, i-PI or ASE over a socket."""

from __future__ import annotations

from pathlib import Path

import click

from sciml.cli import console


@click.command("potential")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--socket", "address", required=True, metavar="unix:NAME|HOST:PORT", help="Where the driver listens.")
@click.option("--structure", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Elements in the driver's order, and periodic directions: what ASE reads.")
@click.option("--dataset", metavar="NAME", help="Whose level of theory, if CHECKPOINT knows several.")
@click.option("--double", is_flag=True, help="Compute in float64.")
@click.option("--compile", "compile_", is_flag=True,
              help="Compile the molecule's forces (half a minute, then faster).")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="End with an error if the driver is silent for so long.")
@click.option("--json", "json_", is_flag=True, help="Print how many evaluations there were, as JSON.")
def potential(checkpoint: Path, address: str, structure: Path, dataset: str | None, double: bool, compile_: bool,
              timeout: float | None, json_: bool) -> None:
    """Be the force engine of a driver that speaks i-PI's protocol, until it says that it is done.

    Start the driver first: LAMMPS with `fix ipi`, i-PI with <ffsocket>, or ASE's SocketIOCalculator. It sends
    places and a cell and gets energy, forces and the virial.
    """
    from sciml.handles.ase import calculator
    from sciml.handles.socket import Address, read_structure, serve
    from sciml.threads import one_thread

    place, atoms = Address.of(address), read_structure(structure)
    with one_thread():
        made = calculator(checkpoint, dataset=dataset, double=double, compile=compile_)
        answered = serve(made, atoms, place, timeout=timeout)
    if json_:
        console.as_json({"socket": address, "evaluations": answered})
    else:
        click.echo(f"{address}: {answered} evaluations")


PLUGIN = potential
