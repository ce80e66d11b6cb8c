"""The benchmarks run and write what they say; what they measure is not tested. Pages of results agree with their files."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import supermask
from ticket_search.deploy.machine_load import Load, measure_load

FOLDER = Path(__file__).parent.parent / "benchmarks"
RESULTS = FOLDER.parent / "results"
PER_TENSOR = ("kept_per_tensor", "effective_per_tensor")
TIMES = ("ours_ns", "partition_ns", "ratio")


@pytest.fixture(scope="module")
def selection(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("benchmarks") / "selection.json"
    flags = ["--quick", "--sizes", "1e4", "--threads", "1", "--json", str(path)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.syspath_prepend(str(FOLDER))
        patch.setattr(sys, "argv", ["selection.py", *flags])
        importlib.import_module("selection").main()
    return {"printed": printed.getvalue(), **json.loads(path.read_text())}


def test_selection_has_a_row_for_all_keys_and_densities(selection):
    rows = selection["rows"]
    assert {(row["size"], row["keys"], row["density"]) for row in rows} == {
        (10_000, keys, density) for keys in ("normal", "uniform") for density in (0.5, 0.1, 0.01)
    }
    for row in rows:
        times = [row[f"{rival}_ns"] for rival in ("ours", "partition", "topk", "kthvalue", "sort")]
        assert all(time > 0 for time in times)
        assert row["ratio"] == pytest.approx(row["ours_ns"] / row["partition_ns"])


def test_selection_says_where_it_was_measured(selection):
    assert selection["benchmark"] == "selection"
    assert selection["threads"] == 1
    for fact in ("cpu", "numpy", "torch", "python", "date", "numpy_simd"):
        assert selection[fact], fact


def test_no_verdict_on_a_busy_machine(selection):
    assert (selection["verdict"] is None) == selection["load"]["busy"]
    assert ("no verdict: the machine is busy" in selection["printed"]) == selection["load"]["busy"]


@pytest.mark.parametrize(
    ("average", "stretch", "waited", "busy"),
    [(0.1, 1.02, 0.0, False), (None, 1.0, 0.0, False), (1.5, 1.0, 0.0, True), (0.1, 1.3, 0.0, True), (0, 1, 0.2, True)],
)
def test_what_counts_as_busy(average, stretch, waited, busy, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import load

    measured = load.Load(average, cores=4, stretch=stretch, waited=waited)
    assert measured.busy == busy == measured.as_dict()["busy"]
    assert "4 cores" in str(measured)


@pytest.mark.parametrize(("others", "busy"), [(0.0, False), (1.0, False), (1.3, True)])
def test_a_search_that_has_ended_makes_no_machine_busy(others, busy):
    """The load average of the last minute knows of it; what counts is who works at the same time."""
    measured = Load(3.0, cores=4, stretch=1.0, waited=0.0, others=others)
    assert measured.busy == busy and f"{others:.1f} other programs at a time now" in str(measured)
    assert measure_load(times=2).others is None or measure_load(times=2).others >= 0


@pytest.fixture
def benchmarks(monkeypatch):
    """Benchmarks by name, as modules, and their arguments."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def run(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        importlib.import_module(name).main()

    return run


@pytest.mark.slow
def test_verdict_says_what_each_truth_came_to(benchmarks, tmp_path, capsys):
    path = tmp_path / "verdict.json"
    flags = ("--bank", "36", "--experiments", "6", "--epochs", "1", "--jobs", "1")
    benchmarks("verdict", *flags, "--runs", str(tmp_path / "bank"), "--json", str(path))
    rows = {row["truth"]: row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == {
        "equal", "0.4 pp worse", "0.5 pp worse", "1 pp worse", "levels, 0.4 pp worse", "random mask",
        "random mask: better than its shuffle", "leaking mask",
    }  # fmt: skip
    for truth in ("equal", "0.4 pp worse", "0.5 pp worse", "levels, 0.4 pp worse"):
        assert rows[truth]["false_no"] == rows[truth]["last"].get("no", 0) / 6
    assert "false_no" not in rows["1 pp worse"]
    assert rows["leaking mask"]["last"] == {"refused": 20} and rows["leaking mask"]["holds"]
    for truth in ("equal", "0.5 pp worse", "1 pp worse", "random mask"):
        assert sum(rows[truth]["first"].values()) == sum(rows[truth]["last"].values()) == 6
    assert "leaking mask" in capsys.readouterr().out


def test_pruning_at_init_finds_a_row_and_does_nothing_twice(benchmarks, tmp_path, capsys):
    flags = (
        f"--data digits --epochs 2 --density 0.2 --seeds 0,1 --runs {tmp_path} --json {tmp_path / 'rows.json'}".split()
    )
    for method in ("dense", "snip"):
        benchmarks("pruning_at_init", method, *flags)
    printed = capsys.readouterr().out.splitlines()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert list(rows) == ["dense", "snip"]
    assert rows["dense"]["shuffled"] == []
    for seed in (0, 1):
        for name, key in ((f"snip-digits-s{seed}", "test_accuracy"), (f"snip-digits-s{seed}-shuffled", "shuffled")):
            summary = json.loads((tmp_path / name / "summary.json").read_text())
            assert summary["test_accuracy"] == rows["snip"][key][seed]
    found, shuffled = (
        supermask.load(tmp_path / f"snip-digits-s0{end}" / "ticket.safetensors") for end in ("", "-shuffled")
    )
    assert found.masks.kept_per_tensor == shuffled.masks.kept_per_tensor
    assert any((found.masks[name] != shuffled.masks[name]).any() for name in found.masks)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.safetensors")}
    benchmarks("pruning_at_init", "snip", *flags)
    assert capsys.readouterr().out.splitlines() == printed[-3:]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.safetensors")} == before


def test_a_difference_counts_where_its_interval_leaves_zero_out(benchmarks, monkeypatch):
    from pruning_at_init import as_row

    # Student's t with 2 degrees of freedom: 4.3027 standard errors
    assert as_row("m", [3, 4, 5], [1, 2, 3]).endswith("| +2.00 ± 0.00 | better |")
    assert as_row("m", [1, 2, 3], [2, 3, 4]).endswith("| -1.00 ± 0.00 | worse |")
    assert as_row("m", [1, 2, 3], [0, 2, 4]).endswith(f"| +0.00 ± {4.3027 / 3**0.5:.2f} | tie |")
    assert as_row("m", [90.0], [89.0]) == "| m | 90.00 | 90.00 | 89.00 | 89.00 | +1.00 |  |"


@pytest.mark.slow
def test_layer_collapse_counts_what_is_kept(benchmarks, tmp_path, capsys):
    flags = f"--model lenet-300-100 --density 0.001 --json {tmp_path / 'out.json'}".split()
    benchmarks("layer_collapse", *flags)
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    weights = result["weights_per_tensor"]
    assert weights == {"fc1.weight": 3072 * 300, "fc2.weight": 30_000, "fc3.weight": 1_000}
    for score in ("magnitude", "synflow"):
        row = result[score]
        assert sum(row["kept_per_tensor"].values()) == row["kept"] == round(0.001 * sum(weights.values()))
        assert row["empty_layers"] == [name for name, kept in row["kept_per_tensor"].items() if kept == 0]
        assert all(row["effective_per_tensor"][name] <= row["kept_per_tensor"][name] for name in weights)
        assert f"{score}: {row['kept']:,} kept, {row['effective']:,} on a path" in printed
    assert result["synflow"]["effective"] > result["magnitude"]["effective"]


@pytest.mark.slow
def test_ticket_files_are_measured_whole(benchmarks, tmp_path, capsys):
    benchmarks(
        "ticket_file", *f"--models lenet-300-100 --densities 0.5,0.01 --quick --json {tmp_path / 'o.json'}".split()
    )
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "o.json").read_text())
    assert [row["density"] for row in result["rows"]] == [0.5, 0.01]
    for row in result["rows"]:
        assert row["weights"] == 266_200
        assert row["entropy_bytes"] < row["mask_bytes"] < row["allowed_bytes"]
        assert row["mask_bytes"] < row["file_bytes"]
        assert 0 < row["pack_memory"] < 2
        assert 0 < row["unpack_memory"] < 2
        assert f"{row['mask_bytes']:,}" in printed
    # Half of the weights at random: one bit each.
    assert result["rows"][0]["entropy_bytes"] == pytest.approx(266_200 / 8, rel=1e-4)
    shared = result["supermask"]
    assert shared["file_bytes"] <= 310_000
    assert shared["times_smaller"] > 30
    assert (result["verdict"] is None) == result["load"]["busy"]


@pytest.mark.slow
def test_steps_are_measured_side_by_side(benchmarks, tmp_path, capsys, monkeypatch):
    benchmarks("step", *f"--rows lenet,lenet-hold,lenet-sorting --quick --json {tmp_path / 'o.json'}".split())
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "o.json").read_text())
    assert [row["row"] for row in result["rows"]] == ["lenet", "lenet-hold", "lenet-sorting"]
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["masks_ms"] / row["dense_ms"])
        assert f"{row['ratio']:.3f}" in printed
    assert (result["verdict"] is None) == result["load"]["busy"]
    from step import Kind, _peak_memory

    assert _peak_memory(Kind("conv4"), "edge-popup", "cpu", 64, 1) > 1e7
    monkeypatch.setattr("step.bf16_is_native", lambda device: False)
    benchmarks("step", "--rows", "lenet,conv4-bf16", "--quick")
    assert "left out: conv4-bf16; this processor has no bf16" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit, match="unknown rows lenett; there are lenet, "):
        benchmarks("step", "--rows", "lenett")


def test_the_dense_network_of_a_step_is_the_one_with_masks(benchmarks):
    from step import ROWS, Kind, Sorting, prepare

    for masks in ("none", "edge-popup", "hold", "sorting", "gates-2:4"):
        model, _ = prepare(Kind("lenet"), masks, "cpu")
        assert sum(p.numel() for n, p in model.named_parameters() if not n.endswith("_scores")) >= 266_200
    assert all((mask.unflatten(-1, (-1, 4)).sum(-1) == 2).all() for mask in supermask.masks_of(model).values()), (
        "two of each four inputs"
    )
    conv4, _ = prepare(Kind("conv4"), "gates-2:4", "cpu")
    assert len(supermask.masks_of(conv4)) == len(supermask.find_targets(conv4)) - 1, "the first layer has one input"
    frozen = torch.randn(4, 5)
    numbers = torch.arange(20.0).view(4, 5)
    # The ten largest of |n - 5.25|.
    assert torch.equal(Sorting(frozen)(numbers - 5.25), frozen * ((numbers >= 11) | (numbers == 0)))
    assert all(kind.must is None or kind.goal < kind.must for kind in ROWS.values())


@pytest.mark.slow
def test_loops_are_measured_side_by_side(benchmarks, tmp_path, capsys, monkeypatch):
    import loop

    small = loop.load_data()
    small = loop.replace(small, train_x=small.train_x[:1280], train_y=small.train_y[:1280])
    monkeypatch.setattr(loop, "load_data", lambda: small)
    benchmarks("loop", *f"--rows lenet,start-up --quick --json {tmp_path / 'o.json'}".split())
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "o.json").read_text())
    assert [row["row"] for row in result["rows"]] == ["lenet", "start-up"]
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["ours_seconds"] / row["bare_seconds"])
        assert row["bare_seconds"] > 0
        assert row["ours_seconds"] > 0
        assert f"{row['ratio']:.3f}" in printed
    assert (result["verdict"] is None) == result["load"]["busy"]
    assert loop.conclude.train_network.__module__ == "ticket_search.training.loop", "what was timed is put back"


@pytest.mark.slow
def test_whole_searches_are_timed(benchmarks, tmp_path, capsys):
    benchmarks(
        "search", *f"--rows lenet-imp-2018 --data digits --epochs 1 --threads 1 --json {tmp_path / 'o.json'}".split()
    )
    (row,) = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert row["trainings"] == 17
    assert row["steps"] == 17 * 21
    assert row["density"] == pytest.approx(0.036, abs=1e-4)
    assert row["seconds"] > 0
    assert f"{row['images_per_second']:,.0f}" in capsys.readouterr().out


@pytest.mark.slow
def test_several_tasks_are_measured(benchmarks, tmp_path, capsys):
    benchmarks("tasks", *f"--tasks permuted:3 --epochs 4 --quick --json {tmp_path / 'o.json'}".split())
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "o.json").read_text())
    assert [row["task"] for row in found["rows"]] == ["0", "1", "2"]
    for row in found["rows"]:
        assert row["bit_equal"] is True
        assert row["entropy_bytes"] == 59_200 / 8
        assert row["entropy_bytes"] < row["added_bytes"] < row["allowed_bytes"]
        assert row["decisions_1"] == 360 and row["decisions_16"] == 22
        assert row["right_16_entropy"] <= 22
        assert f"{row['right_1_entropy']} / 360" in printed
    assert 3 * 7400 < found["whole"]["file_bytes"] < found["whole"]["own_files_bytes"]
    assert [row["weights"] for row in found["switches"]] == [59_200, 266_200]
    assert found["verdict"] in " ".join(printed.split())
    assert ("busy" in found["verdict"]) == found["load"]["busy"]


def test_the_page_on_several_tasks_says_what_was_measured():
    page, found = (RESULTS / "tasks.md").read_text(), json.loads((RESULTS / "tasks.json").read_text())
    assert f"Verdict: {found['verdict']}." in page
    for row in found["rows"]:
        sizes = f"{row['entropy_bytes']:,.0f} | {row['added_bytes']:,} | {row['allowed_bytes']:,.0f} |"
        right = " | ".join(f"{row[f'right_{n}_entropy']} of {row[f'decisions_{n}']}" for n in (1, 16))
        equal = "yes" if row["bit_equal"] else "no"
        assert f"| {row['task']} | {row['test_accuracy']:.2f} | {equal} | {right} | {sizes}" in page
    whole = found["whole"]
    for images in (1, 16):
        shares = " | ".join(f"{whole[f'right_{images}_{by}']:.2f}" for by in ("entropy", "superfluous"))
        assert f"| {images} | {whole[f'decisions_{images}']:,} | {shares} |" in page
    for row in found["switches"]:
        times = f"{row['switch_ms']:.3f} | {row['forward_ms']:.3f} | {row['ratio']:.3f} | 2 |"
        assert f"| {row['network']} | {row['weights']:,} | {times}" in page
    assert all(f"{whole[key]:,}" in page for key in ("file_bytes", "own_files_bytes", "dense_bytes"))


def test_the_page_on_speed_says_what_was_measured():
    page = (RESULTS / "speed.md").read_text()
    step, loop = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("step", "loop"))
    for result, unit, sides in ((step, "ms", ("dense", "masks")), (loop, "seconds", ("bare", "ours"))):
        assert (result["verdict"] or "No verdict: the machine was busy") in " ".join(page.split())
        for row in result["rows"]:
            kind = unit if f"{sides[0]}_{unit}" in row else "megabytes"
            numbers = [f"{row[f'{side}_{kind}']:.3g}" for side in sides] + [f"{row['ratio']:.3f}"]
            bounds = ["" if row[bound] is None else f"{row[bound]:.2f}" for bound in ("must", "goal")]
            assert f"| {row['row']} | " + " | ".join(numbers + bounds) + " |" in page
    for row in json.loads((RESULTS / "search.json").read_text())["rows"]:
        numbers = [f"{row['seconds']:,.0f}", str(row["trainings"]), f"{row['steps']:,}"]
        numbers += [f"{row['images_per_second']:,.0f}", f"{row['density']:.3g}", f"{row['test_accuracy']:.2f}"]
        assert f"| {row['row']} | " + " | ".join(numbers) + " |" in page


def test_the_page_on_the_verdict_says_what_was_measured():
    page, found = (RESULTS / "verdict.md").read_text(), json.loads((RESULTS / "verdict.json").read_text())
    for row in found["rows"]:
        line = next(line for line in page.splitlines() if line.startswith(f"| {row['truth']} | "))
        assert all(f"{key} {number}" in line for part in ("first", "last") for key, number in row[part].items())
        for share in (row.get("false_yes", row.get("power")), row.get("false_no")):
            assert share is None or f"| {share:.1%} (" in line
        assert row["holds"] == line.endswith("| yes |")


@pytest.mark.slow
def test_the_payoff_is_measured_on_what_was_searched(tmp_path):
    words = ["--data", "digits", "--epochs", "1", "--seconds", "0.02", "--threads", "1", "--runs", tmp_path / "runs"]
    command = [sys.executable, FOLDER / "payoff.py", *words, "--json", tmp_path / "out.json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    here = {row["row"]: row["here"] for row in found["rows"]}
    assert here["lenet: points over the accuracy reported"] == 0
    assert here["lenet: dense bytes over those of the ticket"] > 12
    summary = json.loads((tmp_path / "runs" / "conv4" / "summary.json").read_text())
    assert here["conv4: dense parameters over those kept"] == 1 / summary["compact"]["share_of_parameters"] > 3
    dense = summary["levels"][0]["test_accuracy"]
    assert here["conv4: points over the dense network"] == summary["compact"]["test_accuracy"] - dense
    accuracies = found["details"]["conv4"]["accuracies"]
    assert accuracies["dense"] == dense and accuracies["fresh weights"] > 10
    assert (found["verdict"] is None) == found["load"]["busy"]
    refused = subprocess.run([*command[:2], "--rows", "2:4"], capture_output=True, text=True, check=False)
    assert refused.returncode and "2:4 needs CUDA with compute capability 8.0" in refused.stderr


def test_the_page_on_the_payoff_says_what_was_measured():
    page, found = (RESULTS / "payoff.md").read_text(), json.loads((RESULTS / "payoff.json").read_text())
    assert found["verdict"] in page
    for row in found["rows"]:
        cells = ["" if row[key] is None else f"{row[key]:.2f}" for key in ("here", "must", "goal")]
        assert f"| {row['row']} | " + " | ".join(cells) + " |" in page
    for part in found["details"].values():
        for row in part["rows"]:
            times = f"{row['q1']:.3g} to {row['q3']:.3g}" if row["median_ms"] else ""
            assert f"| {row['variant']} | {row['engine']} | " in page or not times
            assert not times or f"| {row['median_ms']:.3g} | {times} |" in page
    sizes, accuracies = found["details"]["lenet"]["sizes"], found["details"]["conv4"]["accuracies"]
    numbers = [f"{sizes[key]:,}" for key in ("kept", "weights", "ticket_bytes", "dense_bytes", "compacted_parameters")]
    assert all(number in page for number in [*numbers, *(f"{value:.2f} %" for value in accuracies.values())])


def test_pages_say_what_was_measured(benchmarks):
    """Every number on a page of `results/` that has a table comes from the file beside it."""
    from pruning_at_init import HEADER, as_row

    page = (RESULTS / "pruning_at_init.md").read_text()
    rows = json.loads((RESULTS / "pruning_at_init.json").read_text())
    table = [as_row(method, row["test_accuracy"], row["shuffled"]) for method, row in rows.items()]
    assert "\n".join([HEADER, *table]) in page
    page = (RESULTS / "layer_collapse.md").read_text()
    result = json.loads((RESULTS / "layer_collapse.json").read_text())
    for name, weights in result["weights_per_tensor"].items():
        counts = [result[score][key][name] for score in ("magnitude", "synflow") for key in PER_TENSOR]
        assert f"| {name} | {weights:,} | " + " | ".join(f"{count:,}" for count in counts) + " |" in page
    page = (RESULTS / "ticket_file.md").read_text()
    result = json.loads((RESULTS / "ticket_file.json").read_text())
    assert result["verdict"] in " ".join(page.split())
    assert f"{result['supermask']['file_bytes']:,} bytes" in " ".join(page.split())
    for row in result["rows"]:
        speeds = ", ".join(f"{row[f'{way}_per_second'] / 1e6:.0f}" for way in ("pack", "unpack"))
        memory = ", ".join(f"{row[f'{way}_memory']:.2f}" for way in ("pack", "unpack"))
        sizes = " | ".join(f"{row[size]:,.0f}" for size in ("entropy_bytes", "mask_bytes", "allowed_bytes"))
        assert f"| {row['weights']:,} | {row['density']:g} | {sizes} | {speeds} | {memory} |" in page
    page = (RESULTS / "selection.md").read_text()
    for name in ("selection", "selection_avx2"):
        result = json.loads((RESULTS / f"{name}.json").read_text())
        assert result["verdict"]
        assert result["verdict"] in " ".join(page.split())
        for size in (10**4, 10**5, 10**6, 10**7, 10**8):
            rows = [row for row in result["rows"] if row["size"] == size]
            assert len(rows) == 6
            spans = (f"{min(row[key] for row in rows):.2f} to {max(row[key] for row in rows):.2f}" for key in TIMES)
            assert f"| {size:.0e} | " + " | ".join(spans) + " |" in page


def test_the_page_of_diagnose_says_what_its_file_says(benchmarks):
    from diagnose import write_page

    found = json.loads((RESULTS / "diagnose.json").read_text())
    assert len(found["planted"]) == 6 and len(found["healthy"]) == 30
    assert write_page(found) == (RESULTS / "diagnose.md").read_text()
    assert sum(row["state"] == "poor" for row in found["healthy"]) <= 1, "at most 5 % of 30 runs with nothing wrong"
    assert all(row["named_first"] and row["trials"][0]["helped"] for row in found["planted"])


def test_the_page_about_connectivity_says_what_its_rows_are(benchmarks):
    """The barriers of the file follow from its rows, and stand on the page, as what was expected does."""
    import connectivity

    from ticket_search.questions.barriers import PairRow, summarize

    written = json.loads((RESULTS / "connectivity.json").read_text())
    page = (RESULTS / "connectivity.md").read_text()
    for name, part in written["parts"].items():
        assert name in connectivity.PARTS
        barriers = summarize([PairRow.model_validate(row) for row in part["rows"]])
        assert [barrier.mean for barrier in barriers] == [barrier["mean"] for barrier in part["barriers"]]
        assert [line for line in map(connectivity.as_line, barriers) if line not in page] == []
    rows = [PairRow.model_validate(row) for row in written["parts"]["mnist1d"]["rows"]]
    assert connectivity.expectations(connectivity.Found({}, rows, [])) == written["expectations"]
    worse = [row.model_copy(update={"barrier": 3.0}) if row.arm == "dense" else row for row in rows]
    held = [each["holds"] for each in connectivity.expectations(connectivity.Found({}, worse, []))]
    assert held == [False, False, True, False, True]
    assert all(f"| {each['claim']} | {each['found']:.2f} |" in page for each in written["expectations"])


def test_what_a_prediction_came_to(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    predictions = importlib.import_module("predictions")
    from ticket_search.analysis.intervals import Difference

    def outcome(sign: str, low: float, high: float) -> str:
        found = Difference(3, (low + high) / 2, 1.0, (low, high))
        return predictions.Prediction("one - other", sign, "because", near=1.0).outcome(found)

    assert [outcome("+", *ends) for ends in ((1, 2), (-1, 2), (-2, -1))] == ["held", "open", "no"]
    assert [outcome("-", *ends) for ends in ((1, 2), (-1, 2), (-2, -1))] == ["no", "open", "held"]
    ends = ((-0.5, 0.5), (0.5, 1.5), (1.5, 2), (-3, -2))
    assert [outcome("=", *each) for each in ends] == ["held", "open", "no", "no"]
    table = predictions.as_table([predictions.Prediction("one - other", "=", "because")], {}, "points")
    assert table.endswith("| one - other | within 1 | because |  | not measured |")


def test_the_page_of_activations_is_that_of_its_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    rows = json.loads((RESULTS / "activations.json").read_text())["rows"]
    page = importlib.import_module("activations").as_page(rows)
    assert (RESULTS / "activations.md").read_text().startswith(page)
    assert len(rows) == 24


def test_the_page_of_signs_is_that_of_its_numbers():
    found, page = json.loads((RESULTS / "signs.json").read_text()), (RESULTS / "signs.md").read_text()
    assert f"**{found['headline']}**" in page
    for arm in found["arms"]:
        values = " ".join(f"{value:.2f}" for value in arm["values"])
        assert f"| {arm['name']} | {values} | {arm['mean']:.2f} ± {arm['std']:.2f} |" in page
    for row in found["agreement"]:
        assert f"| {row['layer']} | {row['weights']:,.0f} | {row['ticket']:.3f} | {row['dense']:.3f} |" in page
