"""One operator for four domains: shared core, ports of their own, growth without loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_domains import atoms, events, grid, panel

from sciml import registry, tokens
from sciml.errors import InputError
from sciml.operator.biases.radial import Radial
from sciml.operator.config import OperatorConfig
from sciml.operator.operator import Operator, count_parameters, optimizer_groups
from sciml.packing import collate
from sciml.predictor import forward
from sciml.testing.conformance import OPERATOR
from sciml.testing.parameters import stir
from sciml.tokens import HeadSpec, TokenBatch, TokenSpec

MODULES = (atoms, events, grid, panel)
FULL = {"levels": [{"width": 32, "depth": 2, "mixers": ["full"], "head_width": 16}], "stem_width": 16,
        "condition_width": 16}


@pytest.fixture(scope="module")
def domains() -> dict[str, Any]:
    stores = [module.make_store() for module in MODULES]
    adapters = [module.PLUGIN().fit(store) for module, store in zip(MODULES, stores)]
    return {a.name: (a, [a.encode(a.open(s, "train").draw(i, None, None)) for i in range(3)])
            for a, s in zip(adapters, stores)}


def operator_of(domains: dict[str, Any], config: dict[str, Any] = OPERATOR) -> Operator:
    torch.manual_seed(0)
    return Operator(OperatorConfig.model_validate(config), {name: a.spec() for name, (a, _) in domains.items()})


@pytest.mark.parametrize("config", [OPERATOR, FULL], ids=["axial", "full"])
def test_four_shapes_of_data_train_the_same_core(domains: dict[str, Any], config: dict[str, Any]) -> None:
    operator = operator_of(domains, config)
    stir(operator)
    reached: dict[str, set[str]] = {}
    for name, (adapter, batches) in domains.items():
        operator.zero_grad()
        batch = collate(batches)
        objective = registry.find("sciml.objectives", adapter.objective)
        objective(forward(adapter, operator, batch, create_graph=True), batch).mean().backward()
        got = {n for n, p in operator.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
        assert all(n.startswith(("levels.", f"ports.{name}.")) for n in got)
        reached[name] = {n for n in got if n.startswith("levels.")}
    core = {n for n, _ in operator.named_parameters() if n.startswith("levels.") and ".context." not in n}
    shared = set.intersection(*reached.values())
    assert set.union(*reached.values()) == core
    assert {n for n in core if ".mixers.1." in n} == core - shared, "only the local mixer has nothing to do on sets"


def test_the_core_names_no_domain(domains: dict[str, Any]) -> None:
    core = [name for name in operator_of(domains).state_dict() if name.startswith("levels.")]
    assert core
    for name in registry.names("sciml.domains"):
        assert not [key for key in core if name in key]


def test_core_weights_do_not_depend_on_which_domains_there_are(domains: dict[str, Any]) -> None:
    both = operator_of(domains).state_dict()
    alone = operator_of({"tiny_grid": domains["tiny_grid"]}).state_dict()
    assert {k: v.shape for k, v in alone.items()}.items() <= {k: v.shape for k, v in both.items()}.items()
    assert {k for k in alone if k.startswith("levels.")} == {k for k in both if k.startswith("levels.")}


def test_a_new_domain_and_new_names_leave_what_was_learnt(domains: dict[str, Any]) -> None:
    adapter, batches = domains["tiny_grid"]
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {"tiny_grid": adapter.spec()})
    before, weights = operator(batches[0])["state"], {k: v.clone() for k, v in operator.state_dict().items()}
    operator.extend(domains["tiny_atoms"][0].spec())
    spec = adapter.spec()
    channels = (*spec.channels, "tiny_grid/salt.level")
    operator.extend(spec.merge(replace(spec, channels=channels, heads={"state": HeadSpec("lattice", channels)},
                                       vector_conditions=("wind",))))
    assert torch.equal(operator(batches[0])["state"], before)
    after = operator.state_dict()
    assert all(torch.equal(after[k], v) for k, v in weights.items())
    assert any("salt·level" in k for k in after)
    values = torch.cat([batches[0].values] * 2, -1)
    assert operator(replace(batches[0], values=values, channels=channels))["state"].shape == values.shape


def test_channels_are_known_by_name_not_by_place() -> None:
    names = ("d/a", "d/b")
    spec = TokenSpec("d", names, {"state": HeadSpec("lattice", names)}, patch=2)
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {"d": spec})
    batch = TokenBatch("d", "s", torch.randn(1, 8, 2), names, (tokens.space("x", torch.arange(8) / 8, period=1.0),))
    swapped = replace(batch, values=batch.values.flip(-1), channels=names[::-1])
    torch.testing.assert_close(operator(swapped)["state"], operator(batch)["state"].flip(-1))
    only = replace(batch, values=batch.values[..., :1], channels=names[:1])
    assert operator(only)["state"].shape == (1, 8, 1)


def test_identities_grow_by_rows() -> None:
    spec = TokenSpec("d", ("d/a",), {"next": HeadSpec("tied", namespace="x/u")}, identities={"x/u": ("p", "q")})
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {"d": spec})
    axis = tokens.identity("e", torch.tensor([0, 1, 0]), "x/u")
    batch = TokenBatch("d", "s", torch.randn(1, 3, 1), ("d/a",), (axis,))
    before = operator(batch)["next"]
    operator.extend(replace(spec, identities={"x/u": ("p", "q", "r")}))
    after = operator(batch)["next"]
    assert after.shape == (1, 3, 3)
    torch.testing.assert_close(after[..., :2], before)


def test_an_unknown_domain_is_refused(domains: dict[str, Any]) -> None:
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {"tiny_grid": domains["tiny_grid"][0].spec()})
    with pytest.raises(InputError, match=r"'tiny_atoms'.*one of.*tiny_grid"):
        operator(domains["tiny_atoms"][1][0])


def test_context_reaches_the_tokens_once_it_is_trained() -> None:
    frames = TokenSpec("movie", ("movie/light",), {}, patch=2)
    spec = TokenSpec("d", ("d/a",), {"state": HeadSpec("lattice", ("d/a",))}, context=frames)
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {"d": spec})
    axis = tokens.identity("v", torch.arange(3), "none")
    axis = replace(axis, ids=None, namespace=None)

    def batch(light: torch.Tensor) -> TokenBatch:
        movie = TokenBatch("movie", "m", light, ("movie/light",), (tokens.space("x", torch.arange(5.0)),))
        return TokenBatch("d", "s", torch.ones(1, 3, 1), ("d/a",), (axis,),
                          conditions=tokens.Conditions(context=movie))

    dark, bright = batch(torch.zeros(1, 5, 1)), batch(torch.ones(1, 5, 1))
    assert torch.equal(operator(dark)["state"], operator(bright)["state"]), "starts as if there were none"
    stir(operator)
    assert not torch.allclose(operator(dark)["state"], operator(bright)["state"])


@pytest.mark.parametrize("kind", ["pair", "pooled", "lattice"])
def test_heads_have_the_shape_they_promise(kind: str) -> None:
    names = ("d/e", "d/f")
    spec = TokenSpec("d", names, {"h": HeadSpec(kind, names)})
    operator = Operator(OperatorConfig.model_validate(OPERATOR), {"d": spec})
    axis = tokens.Axis("atom", "set", torch.rand(1, 5, 3), segment=torch.tensor([[0, 0, 1, 1, 1]]))
    y = operator(TokenBatch("d", "s", torch.randn(1, 5, 2), names, (axis,), num_segments=2))["h"]
    assert y.shape == {"pair": (1, 5, 5, 2), "pooled": (2, 2), "lattice": (1, 5, 2)}[kind]


def test_radial_bias_sees_the_nearest_image() -> None:
    bias, coord = Radial(2), torch.rand(1, 4, 3)
    moved = coord + torch.tensor([1.0, 0, -2])[None, None] * torch.tensor([0.0, 1, 1, 0])[None, :, None]
    cell = torch.eye(3)[None]
    plain = tokens.Axis("atom", "set", coord, period=cell)
    torch.testing.assert_close(bias(plain), bias(replace(plain, coord=moved)))
    torch.testing.assert_close(bias(plain), bias(replace(plain, period=torch.ones(3))))
    skew = torch.tensor([[[1.0, 0, 0], [0.3, 1, 0], [0, 0.2, 1]]])
    along = replace(plain, coord=coord + torch.tensor([0.0, 0, 1, 0])[None, :, None] * skew[:, 1], period=skew)
    torch.testing.assert_close(bias(replace(plain, period=skew)), bias(along))


def test_an_empty_cache_has_an_entry_per_mixer(domains: dict[str, Any]) -> None:
    assert operator_of(domains).empty_cache() == [()] * 5


def test_optimizer_groups_hold_every_weight_once(domains: dict[str, Any]) -> None:
    operator = operator_of(domains)
    matrices, rest = optimizer_groups(operator)
    assert sum(p.numel() for p in (*matrices, *rest)) == count_parameters(operator)
    assert all(p.ndim == 2 for p in matrices)
    assert len({id(p) for p in (*matrices, *rest)}) == len(list(operator.parameters()))


def test_a_configuration_that_cannot_be_built_is_refused() -> None:
    for wrong in ({"width": 30, "head_width": 16}, {"width": 36, "head_width": 6}, {"wide": 3}):
        with pytest.raises(ValueError, match=r"width|wide"):
            OperatorConfig.model_validate({"levels": [wrong]})
    with pytest.raises(InputError, match=r"one of: .*axial"):
        Operator(OperatorConfig.model_validate({"levels": [{"mixers": ["axxial"]}]}), {})
