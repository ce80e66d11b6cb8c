"""Starts from signs and from magnitudes only, what is counted of signs and masks, and what is said of it."""

from __future__ import annotations

import itertools
import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import supermask
import ticket_search
from supermask import Masks
from supermask.weights import inits
from ticket_search import RequestError
from ticket_search.analysis.findings import Answer
from ticket_search.analysis.intervals import chance_of_none, confidence_interval, difference
from ticket_search.contract.metric import ACCURACY
from ticket_search.questions.agreement import ALL, mask_overlap, sign_agreement
from ticket_search.questions.signs import Signs, check_signs
from ticket_search.runs.names import SIGNS
from ticket_search.runs.records import write_record

OLD = Path(__file__).parent / "fixtures" / "runs-0.1.0" / "finished"
SMALL = {
    "epochs": 1, "threads": 1, "train_size": 320, "model_args": ("width=0.1",), "levels": (0.5, 0.2), "density": 0.2,
    "lr": 0.3, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two searches that differ in their seeds, with all that `signs` trains."""
    runs = tmp_path_factory.mktemp("signs")
    for seed in (0, 1):
        ticket_search.search("imp", runs=runs, name=f"s{seed}", seed=seed, **SMALL)
    ticket_search.signs([runs / "s0", runs / "s1"], progress=False)
    return runs


@pytest.fixture(scope="module")
def found(folder) -> Signs:
    return ticket_search.signs([folder / "s0", folder / "s1"], progress=False)


def start_of(folder: Path, kind: str) -> dict[str, np.ndarray]:
    ticket = supermask.load(folder / "s0" / "controls" / f"{kind}-level-02" / "ticket.safetensors")
    return {name: tensor.numpy() for name, tensor in ticket.state_dict("start").items()}


def test_the_starting_tensors_by_numpy(folder):
    ticket = supermask.load(folder / "s0" / "ticket.safetensors")
    start, final = ({n: t.numpy() for n, t in ticket.state_dict(state).items()} for state in ("start", "final"))
    made = {kind: start_of(folder, kind) for kind in SIGNS}
    negative = []
    for name, mask in ticket.masks.items():
        mask = mask.numpy()
        std = np.float32(np.sqrt(2 / mask.shape[1]))  # of kaiming-normal
        for kind, signs in (("initial-signs", start), ("trained-signs", final)):
            expected = np.where(mask, np.where(signs[name] < 0, -std, std), 0)
            np.testing.assert_array_equal(made[kind][name], expected)
        np.testing.assert_array_equal(np.abs(made["magnitudes"][name]), np.abs(start[name]))
        negative += [(np.sign(made["magnitudes"][name]) != np.sign(start[name]))[mask]]
    assert 0.4 < np.concatenate(negative).mean() < 0.6, "signs are drawn anew"
    for name in start.keys() - set(ticket.masks):
        for kind in SIGNS:
            np.testing.assert_array_equal(made[kind][name], start[name])


@pytest.mark.parametrize("init", [name for name in inits.WEIGHT_INITS if name != "unsigned-constant"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_standard_deviation_of_an_init(init, scale):
    draw = inits.Draw(init, 0, scale, (300, 200))
    assert inits.std_of(draw) == pytest.approx(float(draw.tensor("w").std()), rel=0.01)


def test_what_is_there_is_not_trained_again(folder, found, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    records = {path: path.read_bytes() for path in folder.glob("*/controls.json")}
    assert len(records) == 2
    monkeypatch.setattr("ticket_search.running.controls.carry_out", refuse)
    again = ticket_search.signs(["s0", "s1"], runs=folder, progress=False)
    assert again.arms == found.arms
    assert records == {path: path.read_bytes() for path in records}
    # A control that is lost is trained again, alone.
    copy = folder.parent / "copy"
    shutil.copytree(folder / "s0", copy / "s0")
    rows = json.loads((copy / "s0" / "controls.json").read_text())["rows"]
    kept = [row for row in rows if row["control"] != "magnitudes"]
    write_record(copy / "s0", "controls.json", {"rows": kept})
    shutil.rmtree(copy / "s0" / "controls" / "magnitudes-level-02")
    with pytest.raises(AssertionError, match="trained again"):
        ticket_search.signs(copy / "s0", progress=False)


def test_arms_are_paired_with_the_ticket(folder, found):
    assert [arm.name for arm in found.arms] == ["ticket", *SIGNS, "reinit", "shuffle"]
    tickets = [json.loads((folder / name / "summary.json").read_text())["test_accuracy"] for name in ("s0", "s1")]
    assert list(found.arms[0].values) == tickets
    for arm in found.arms[1:]:
        gaps = [value - other for value, other in zip(arm.values, tickets, strict=True)]
        assert arm.difference.mean == pytest.approx(np.mean(gaps))
        assert arm.difference.interval == pytest.approx(confidence_interval(gaps))
    more = [a - b for a, b in zip(found.arms[1].values, found.arms[3].values, strict=True)]
    nothing = dict.fromkeys(range(2), 0.0)
    chances = [chance_of_none(arm.difference) for arm in found.arms[1:]]
    chances.append(chance_of_none(difference(dict(enumerate(more)), nothing)))
    highest, corrected = 0.0, {}
    for rank, place in enumerate(np.argsort(chances, kind="stable")):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[place]))
        corrected[int(place)] = highest
    assert [arm.p_holm for arm in found.arms[1:]] == pytest.approx([corrected[place] for place in range(5)])


def test_making_them_changes_no_answer_about_other_controls(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "runs")
    with_signs = ticket_search.compare([tmp_path / "runs" / name for name in ("s0", "s1")])
    for path in (tmp_path / "runs").glob("*/controls.json"):
        rows = [row for row in json.loads(path.read_text())["rows"] if row["control"] not in SIGNS]
        write_record(path.parent, "controls.json", {"rows": rows})
    without = ticket_search.compare([tmp_path / "runs" / name for name in ("s0", "s1")])
    others = [row for row in with_signs.groups[0].controls if row.control not in SIGNS]
    assert tuple(others) == without.groups[0].controls
    assert with_signs.groups[0].verdict == without.groups[0].verdict


def test_agreement_by_numpy(folder, found):
    rows = {row.layer: row for row in found.agreement}
    assert list(rows) == ["fc1.weight", "fc2.weight", "fc3.weight", ALL]
    for layer in rows:
        shares = {key: [] for key in ("ticket", "dense", "dropped", "trained")}
        for name in ("s0", "s1"):
            ticket = supermask.load(folder / name / "ticket.safetensors")
            dense = supermask.load(folder / name / "levels" / "00" / "ticket.safetensors")
            names = list(ticket.masks) if layer == ALL else [layer]

            def flat(tensors, names=names):
                return np.concatenate([np.asarray(tensors[each]).ravel() for each in names])

            kept = flat(ticket.masks)
            first, last = flat(ticket.state_dict("start")), flat(ticket.state_dict("final"))
            before, after = flat(dense.state_dict("start")), flat(dense.state_dict("final"))
            shares["ticket"].append((np.sign(first) == np.sign(last))[kept].mean())
            shares["dense"].append((np.sign(before) == np.sign(after))[kept].mean())
            shares["dropped"].append((np.sign(before) == np.sign(after))[~kept].mean())
            shares["trained"].append((np.sign(after) == np.sign(last))[kept].mean())
        for key, values in shares.items():
            assert rows[layer][key] == pytest.approx(np.mean(values)), (layer, key)
    assert rows[ALL].dropped < rows[ALL].dense, "signs of large weights change less"


def test_agreement_without_a_dense_network(folder):
    ticket = supermask.load(folder / "s0" / "ticket.safetensors")
    (*_, row) = sign_agreement([(ticket, None)])
    assert row.ticket > 0.5
    assert (row.dense, row.dropped, row.trained) == (None, None, None)


def test_overlap_of_masks_by_sets():
    draw = torch.Generator().manual_seed(0)
    masks = [
        Masks({"a": torch.rand(6, 5, generator=draw) < 0.5, "b": torch.rand(40, generator=draw) < 0.3})
        for _ in range(3)
    ]
    rows = {row.layer: row for row in mask_overlap(masks)}
    for layer, names in {"a": ["a"], "b": ["b"], ALL: ["a", "b"]}.items():
        sets = [{(n, i) for n in names for i in mask[n].flatten().nonzero().flatten().tolist()} for mask in masks]
        size = sum(masks[0][name].numel() for name in names)
        row = rows[layer]
        assert row.union == pytest.approx(len(set.union(*sets)) / size)
        assert row.intersection == pytest.approx(len(set.intersection(*sets)) / size)
        pairs = list(itertools.combinations(sets, 2))
        assert row.overlap == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs]))
        if layer != ALL:
            laws = [stats.hypergeom(size, len(a), len(b)) for a, b in pairs]
            beyond = [(len(a & b) - law.mean()) / law.std() for (a, b), law in zip(pairs, laws, strict=True)]
            assert row.beyond == pytest.approx(np.mean(beyond))
    whole = Masks({"a": torch.ones(4, dtype=torch.bool)})
    (row, _) = mask_overlap([whole, whole])
    assert (row.overlap, row.by_chance, row.beyond) == (1.0, 1.0, None)


@pytest.mark.parametrize(
    ("alone", "more", "said"),
    [
        ("yes", "yes", "It is the signs:"),
        ("no", "yes", "in part"),
        ("no", "no", "It is not the signs"),
        ("yes", "undecided", "whether its magnitudes alone do it too is not decided"),
        ("undecided", "yes", "better than the magnitudes alone; whether as well as the ticket is not decided"),
        ("unknown", "unknown", "Whether it is the signs is not decided"),
    ],
)
def test_the_headline(found, alone, more, said):
    questions = [answer.question for answer in found.answers]
    answers = [Answer(q, word, "") for q, word in zip(questions, (alone, alone, more), strict=True)]
    changed = Signs(**{**vars(found), "answers": tuple(answers)})
    assert said in changed.headline


@pytest.fixture(scope="module")
def others(folder) -> Path:
    """Runs that have no answer; two of them are of version 0.1."""
    shutil.copytree(OLD / "edge-popup", folder / "frozen")
    shutil.copytree(OLD / "dense", folder / "dense")
    for name in ("same", "stopped", "other"):
        shutil.copytree(folder / "s0", folder / name)
    (folder / "stopped" / "summary.json").unlink()
    config = tomllib.loads((folder / "other" / "config.toml").read_text())
    write_record(folder / "other", "config.toml", {**config, "batch_size": 64, "seed": 5})
    return folder


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "expected the folder or the name of a finished run"),
        (["nothing"], "there is no run 'nothing'"),
        (["stopped"], "is not finished; `ticket resume"),
        (["frozen"], "the weights of .*frozen .edge-popup. are never trained, so that they keep their signs"),
        (["dense"], "dense is a dense run: it has no mask"),
        (["s0", "other"], "other differs from .*s0 in more than its seeds: --batch-size 60 there, 64 here$"),
        (["s0", "same"], "same has the seeds of .*s0: expected runs of several seeds"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_what_has_no_answer_is_told_at_once(others, names, said):
    with pytest.raises(RequestError, match=said):
        check_signs(names, runs=others)


def test_a_run_of_an_older_version_is_taken():
    assert check_signs([OLD / "imp"]) == [OLD / "imp"]


def test_all_problems_are_told(others):
    with pytest.raises(RequestError) as told:
        check_signs(["nothing", "frozen", "dense", "s0", "s1"], level=7, runs=others)
    assert len(told.value.problems) >= 5
    assert any("level 7: after the dense level 0 the run has levels 1 to 2" in each for each in told.value.problems)


def test_a_run_of_a_function_needs_it_again(tmp_path):
    from supermask.weights.architectures import find_architecture

    build = find_architecture("lenet-300-100")
    model = lambda: build(input_shape=(1, 8, 8), width=0.1)  # noqa: E731
    flags = {key: value for key, value in SMALL.items() if key != "model_args"}
    run = ticket_search.search("imp", model=model, runs=tmp_path, name="own", init="kaiming-normal", **flags)
    with pytest.raises(RequestError):
        check_signs([run.path])
    assert check_signs([run.path], model=model) == [run.path]


def test_the_command(folder, found, ticket):
    shown = ticket("signs", "s0", "s1", "--runs", str(folder), "--plot", "signs.png")
    assert shown.code == 0, shown.err
    assert shown.out.strip().startswith(found.headline)
    corrected = "corrected over these 5 differences to the ticket and that of the last question"
    for text in (
        "initial-signs: its initial signs",
        "fc2.weight",
        "what the masks of 2 runs have in common",
        corrected,
    ):
        assert text in shown.out
    assert Path("signs.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(ticket("signs", "s0", "s1", "--runs", str(folder), "--json").out)
    assert told["headline"] == found.headline
    assert [arm["name"] for arm in told["arms"]] == [arm.name for arm in found.arms]
    assert told["metric"] == ACCURACY.to_dict()
    assert repr(found).startswith("Signs(2 runs, density 0.2: ticket ")
    assert list(found.frame().columns) == ["run", "arm", "test_accuracy"]
