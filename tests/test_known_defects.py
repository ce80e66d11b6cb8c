"""Mistakes that programs for pruning make again and again, and a test for each.

A test elsewhere that covers one is named here, and must exist:

- selection keeps one more or one fewer than asked:
  test_pruning::test_prune_equals_the_slow_one
- ties are all kept, or all dropped:
  test_selection::test_top_k_equals_the_sort
- signed scores in many rounds bring weights back:
  test_pruning::test_masks_only_shrink_even_where_scores_would_bring_weights_back
- weights drawn again by a random score return:
  method_tests::masks_only_shrink_and_rewound_weights_are_the_stored_ones
- levels go on training instead of starting again:
  method_tests::masks_only_shrink_and_rewound_weights_are_the_stored_ones
- the mask is not held while training:
  test_live::test_dropped_weights_are_exactly_zero_after_every_step
- a shuffle that changes nothing:
  test_masks::test_a_shuffle_depends_on_seed_and_name_and_leaves_what_is_not_counted
- path scores taken once, not in a hundred rounds:
  test_schedules::test_synflow_takes_a_hundred_rounds_down_to_the_density
- path scores in training mode, norms taking the ones apart:
  test_scores::test_synflow_goes_through_a_norm_as_it_is_in_evaluation
- path scores in float32 overflow:
  test_scores::test_synflow_of_sixty_layers_stays_finite
- scores of gradients drop the one that was to be kept:
  test_scores::test_scores_of_gradients_equal_those_by_hand
- global ranking refuses structured units:
  test_pruning::test_every_combination_works_or_says_why_not
- an unknown name prints and trains dense:
  test_cli::test_a_bad_request_exits_2_names_every_problem_and_writes_nothing
- an unknown name in Python:
  test_pruning::test_bad_requests_say_what_came_and_what_was_expected
- baking a copy breaks the original:
  test_live::test_bake_gives_an_ordinary_module_and_leaves_the_original_running
- a warning whose own text crashes:
  test_house::test_our_own_warnings_are_errors
- an option that no run has ever taken:
  method_tests::extreme_densities_are_met_or_refused
"""

from __future__ import annotations

import ast
import functools
import math
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from networks import NETWORKS, Residual, perceptron, start_of
from products import combine
from torch import nn

import supermask
from supermask.choosing.allocation import ALLOCATIONS
from supermask.choosing.granularity import GRANULARITIES
from supermask.choosing.schedules import SCHEDULES
from supermask.choosing.scores import SCORES
from supermask.live.held import program_of
from supermask.masks.targets import find_targets
from supermask.selection.top_k import count_kept
from ticket_search.contract.declared import ScoreName
from ticket_search.methods import find_method, method_names
from ticket_search.methods.gradual import Config as Gradual
from ticket_search.methods.one_shot import Config as OneShot
from ticket_search.training.at_init import PruningConfig

pytestmark = pytest.mark.quick

TESTS = Path(__file__).parent
ROWS = re.findall(r"^- (.+):\n  (\w+)::(\w+)$", __doc__, re.MULTILINE)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@functools.cache
def functions_of(path: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in statements(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """All statements within a module or a statement; expressions, which are many more, have none in them."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        for each in getattr(node, part, ()):
            if isinstance(each, ast.stmt):
                yield each
            yield from statements(each)


@pytest.mark.parametrize(("defect", "file", "name"), ROWS, ids=[row[0] for row in ROWS])
def test_the_test_that_is_named_exists_and_asserts(defect, file, name):
    found = functions_of(TESTS / f"{file}.py")
    assert name in found, f"{defect}: {file} has no {name}"
    called = [
        node.func.id for node in ast.walk(found[name]) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    words = "".join(ast.dump(found[each]) for each in (name, *called) if each in found)
    assert "Assert(" in words or "raises" in words


def test_every_line_of_the_table_is_read():
    assert len(ROWS) == __doc__.count("::") == 17


# --- densities


@pytest.mark.parametrize("granularity", [*GRANULARITIES, "block:1x2"])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_the_ends_of_the_range(allocation, granularity):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(8, 6), nn.Linear(6, 4))
    everything = supermask.prune(model, 1, allocation=allocation, granularity=granularity)
    assert all(bool(mask.all()) for mask in everything.values())
    half = supermask.prune(model, 0.5, allocation=allocation, granularity=granularity)
    assert half.within(everything) and half.kept < everything.kept
    units = {"weight": 144, "filter": 10, "channel": 16, "block:1x2": 72}.get(granularity)
    assert units, f"count the units of {granularity}"
    if allocation == "layerwise":
        with pytest.raises(ValueError, match=f"keeps none of the {units} units"):
            supermask.prune(model, 0.4 / units, allocation=allocation, granularity=granularity)
    else:
        one = supermask.prune(model, 1 / units, allocation=allocation, granularity=granularity)
        exclude = "2" if granularity == "filter" else None
        left = sum(int(one[name].sum()) for name in find_targets(model, exclude=exclude))
        assert left in {"weight": (1,), "filter": (18, 8), "channel": (36, 6, 4), "block:1x2": (2,)}[granularity]
    for density in (0, -0.5, 1.0001, math.inf):
        with pytest.raises(ValueError, match=r"density is the fraction kept and lies in \(0, 1\]"):
            supermask.prune(model, density, allocation=allocation, granularity=granularity)


@combine(score=SCORES, allocation=ALLOCATIONS)
def test_density_is_what_is_kept_and_not_what_is_dropped(score, allocation):
    model = nn.Sequential(
        nn.Conv2d(2, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.Flatten()
    )
    batches = [(torch.randn(4, 2, 3, 3), torch.tensor([0, 1, 2, 3]))]
    ask = {"batches": batches, "example_input": batches[0][0], "start": start_of(model)}
    few, many = (supermask.prune(model, density, score, allocation, rounds=2, **ask) for density in (0.1, 0.9))
    assert few.density < 0.2 < 0.8 < many.density


def test_density_of_learned_masks_and_the_scale_that_goes_with_it():
    made = {}
    for density in (0.1, 0.9):
        model = Residual()
        supermask.learn(model, density)
        assert supermask.masks_of(model).density == pytest.approx(density, abs=0.02)
        made[density] = model.stem.weight.detach().abs().flatten()[0] / (2 / 9) ** 0.5
    assert made[0.1] == pytest.approx(0.1**-0.5), "1 / sqrt(density), which is the other way round at one minus it"
    assert made[0.9] == pytest.approx(0.9**-0.5)


def test_equal_scores_keep_what_was_asked_and_no_more():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    for constant in (0.0, 1.0, -2.5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(constant)
        masks = None
        for level in range(1, 8):
            masks = supermask.prune(model, 0.8**level, previous=masks)
            assert masks.kept == count_kept(0.8**level, 200)


def test_layers_that_are_left_out_do_not_count():
    model = perceptron()
    masks = supermask.prune(model, 0.5, exclude="0")
    assert list(masks) == ["2.weight", "4.weight"]
    assert masks.kept == count_kept(0.5, 63 + 21)
    again = supermask.prune(model, 0.25, previous=masks)
    assert again.kept == count_kept(0.25, 63 + 21)


# --- layouts, precision, modes


@pytest.mark.parametrize("ranking", ["layerwise", "global"])
def test_learned_scores_in_any_memory_format_are_masks(ranking):
    plain, other = (nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)) for _ in range(2))
    other.to(memory_format=torch.channels_last)
    for model in (plain, other):
        supermask.learn(model, 0.3, allocation=ranking)
        program = program_of(model)
        for name in program.owners:
            score = program.score(name)
            if model is other:
                score.data = score.data.to(memory_format=torch.channels_last)
                assert not score.is_contiguous()
    first, second = supermask.masks_of(plain), supermask.masks_of(other)
    assert all(mask.dtype == torch.bool for mask in second.values())
    assert first == second
    with torch.no_grad():
        x = torch.randn(2, 4, 6, 6)
        assert torch.allclose(plain(x), other(x), atol=1e-6)


def test_path_scores_are_not_rounded_by_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30, bias=False), nn.ReLU(), nn.Linear(30, 20, bias=False))
    expected = supermask.prune(model, 0.1, "synflow", example_input=torch.ones(1, 20))
    with torch.autocast("cpu", torch.bfloat16):
        found = supermask.prune(model, 0.1, "synflow", example_input=torch.ones(1, 20))
    assert found == expected


def test_path_scores_do_not_depend_on_the_mode():
    for network in ("residual", "perceptron"):
        model, example = NETWORKS[network][0](), NETWORKS[network][1]()
        ask = {"score": "synflow", "rounds": 3, "example_input": example}
        assert supermask.prune(model.train(), 0.2, **ask) == supermask.prune(model.eval(), 0.2, **ask)


# --- tables


def choices(config: type, field: str) -> set[str]:
    annotation = config.model_fields[field].annotation
    given = [part for part in typing.get_args(annotation) if typing.get_origin(part) is typing.Literal]
    return set(typing.get_args(given[0] if given else annotation))


def test_the_command_line_knows_every_entry_of_every_table():
    assert choices(PruningConfig, "allocation") == set(ALLOCATIONS)
    scores = next(each for each in OneShot.model_fields["score"].metadata if isinstance(each, ScoreName))
    assert {*scores.own, "l1"} == set(SCORES), "l1 is another word for magnitude"
    assert choices(Gradual, "fall") == set(SCHEDULES)
    for name in method_names():
        config = find_method(name).Config
        if issubclass(config, PruningConfig):
            assert choices(config, "allocation") == set(ALLOCATIONS), name


# --- tests of tests

COMPARING = {"equal", "allclose", "array_equal", "isclose", "within"}


def thrown_away(path: Path) -> list[int]:
    """Lines on which a comparison is made and nobody looks at what came out; errors that are expected apart."""
    every, lines, refused = list(statements(ast.parse(path.read_text()))), [], set()
    for node in every:
        if isinstance(node, ast.With) and "raises" in ast.dump(node.items[0]):
            refused |= {id(statement) for statement in node.body}
    for node in every:
        if isinstance(node, ast.Expr) and id(node) not in refused:
            called = node.value.func if isinstance(node.value, ast.Call) else None
            if isinstance(node.value, ast.Compare) or getattr(called, "attr", getattr(called, "id", None)) in COMPARING:
                lines.append(node.lineno)
    return lines


def test_no_test_throws_a_comparison_away(tmp_path):
    guilty = tmp_path / "test_guilty.py"
    guilty.write_text("def check(a, b):\n    np.array_equal(a, b)\n    a == b\n    assert a == b\n")
    assert thrown_away(guilty) == [2, 3]
    assert {path.name: found for path in sorted(TESTS.glob("*.py")) if (found := thrown_away(path))} == {}
