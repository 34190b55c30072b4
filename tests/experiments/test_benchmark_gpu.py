"""The benchmark on a GPU: its cases, its budget, and its rows, with a card that is pretended."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from experiments.benchmark import cases, driver, ours, processes, worker
from experiments.benchmark import report as benchmark_report
from experiments.benchmark.budget import Budget, coarse_first

CASE = cases.Case("layer", "stem", "released", "float32", 8, 32, 64, 1.0)


Seconds = Callable[[cases.Case], float]


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class PretendedWorkers:
    """Answers as the processes do, at once, in the time of a clock. A pass takes a millisecond."""

    def __init__(self, clock: Clock, fails: Callable[[cases.Case], bool], names: Sequence[str], build: Seconds):
        self.environments: dict[str, dict[str, str]] = {name: {} for name in names}
        self.restarts = 0
        self.late = 0
        self.asked: list[tuple[str, str, int]] = []
        self._clock, self._fails, self._build = clock, fails, build

    def __getitem__(self, name: str) -> "PretendedWorkers":
        return self

    def restart_ended(self) -> None:
        self.restarts += 1

    def close(self) -> None:
        pass

    def ask(self, do: str, case: cases.Case | None = None, seconds: float | None = None, **more: Any) -> dict[str, Any]:
        if do == "device":
            return {"name": "Card 9", "found": ["CPU:0", "GPU:0"], "tensor_float_32": True}
        times = more.get("times", 1)
        self.asked.append((do, case.variant, times))
        takes = {"build": self._build(case), "run": 0.001 * times}.get(do, 0.0)
        if seconds is not None and takes > seconds:
            self._clock.now += seconds
            self.late += 1
            raise processes.OutOfTimeError("too slow")
        self._clock.now += takes
        if do == "build" and self._fails(case):
            assert more["may_fail"]
            raise RuntimeError("ResourceExhaustedError: no memory\nfor 8 GB")
        return {"macs": 7, "seconds": 0.001 * times, "megabytes": 5.0}


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[driver.Measured, PretendedWorkers]]:
    def measured(
        parts: Sequence[str],
        seconds: float | None,
        fails: Callable[[cases.Case], bool] = lambda case: False,
        against: str | None = None,
        build: Seconds = lambda case: 1.0,
        repeats: int = 3,
    ) -> tuple[driver.Measured, PretendedWorkers]:
        clock = Clock()
        workers = PretendedWorkers(clock, fails, ["ours", *(["release"] if against else [])], build)
        monkeypatch.setattr(driver, "Workers", lambda environments: workers)
        monkeypatch.setattr(driver, "Budget", lambda seconds: Budget(seconds, clock))
        before = clock.now
        found = driver.measure(parts, 2, repeats, against, "gpu", seconds)
        assert seconds is None or clock.now - before <= seconds
        return found, workers

    return measured


# --- The budget ------------------------------------------------------------------------------------------------------


def test_the_parts_share_the_time_and_leave_what_they_do_not_need():
    clock = Clock()
    budget = Budget(100.0, clock)
    budget.begin("layer", ["engines", "step"])  # 6 of 19 shares of 95 seconds.
    clock.now += 29.9
    assert not budget.part_is_over()
    clock.now += 0.2
    assert budget.part_is_over()
    budget.begin("engines", ["step"])
    assert not budget.part_is_over()
    assert budget.seconds_left() == pytest.approx(49.9 + 0.0, abs=0.1)
    budget.begin("step", [])
    clock.now = 194.9
    assert not budget.part_is_over()
    clock.now = 195.0
    assert budget.part_is_over()
    assert budget.seconds_left() == 5.0  # For the place that began before.
    clock.now = 300.0
    assert budget.seconds_left() == 0.0


def test_without_a_limit_nothing_is_over():
    budget = Budget(None, Clock())
    budget.begin("layer", ["step"])
    assert not budget.is_limited and not budget.part_is_over() and budget.seconds_left() is None


@pytest.mark.parametrize("length", [0, 1, 2, 40])
def test_a_list_that_is_cut_short_covers_its_range(length: int):
    order = coarse_first(range(length))
    assert sorted(order) == list(range(length))
    assert length < 40 or sorted(order[:14]) == list(range(0, 40, 3))


def test_every_place_is_measured_if_there_is_time(pretended: Callable):
    measured, _ = pretended(cases.PARTS, 10_000.0)
    listed = cases.cases(cases.PARTS, 2, "gpu")
    assert [(row["place"], row["variant"], row["dtype"]) for row in measured.rows] == [
        (case.place, case.variant, case.dtype) for case in listed
    ]
    assert not measured.too_late and not measured.failed


def test_a_budget_leaves_each_part_something_and_names_the_rest(pretended: Callable):
    measured, _ = pretended(cases.PARTS, 150.0)
    listed = cases.cases(cases.PARTS, 2, "gpu")
    done = {f"{row['part']}, {row['place']}" for row in measured.rows}
    assert {row["part"] for row in measured.rows} == {"machine", *cases.PARTS}
    assert done | set(measured.too_late) == {f"{case.part}, {case.place}" for case in listed}
    assert not done & set(measured.too_late)
    order = {case: number for number, case in enumerate((case.place, case.variant, case.dtype) for case in listed)}
    ranks = [order[row["place"], row["variant"], row["dtype"]] for row in measured.rows]
    assert ranks == sorted(ranks)


def test_no_place_begins_after_its_part_is_over(pretended: Callable):
    measured, workers = pretended(["engines"], 200.0)  # A place takes less than the ten seconds that it may end in.
    assert measured.rows and measured.too_late
    assert workers.late == 0


def test_a_place_whose_time_is_over_is_timed_less_often(pretended: Callable):
    measured, workers = pretended(["step"], 60.0, repeats=10_000)
    assert {row["part"] for row in measured.rows} == {"machine", "step"}
    assert workers.late == 0


def test_a_slow_release_cannot_take_all_the_time(pretended: Callable):
    def build(case: cases.Case) -> float:
        return 120.0 if case.variant == "release" and case.part == "layer" else 1.0

    measured, _ = pretended(["layer", "step"], 300.0, against="somewhere", build=build)
    assert [row["variant"] for row in measured.rows if row["part"] == "layer"].count("release") == 1
    assert {row["variant"] for row in measured.rows if row["part"] == "step"} == {*cases.STEP_VARIANTS, "release"}
    assert measured.too_late == ["layer, block 4", "layer, block 2", "layer, block 3"]


def test_a_worker_that_hangs_is_ended(pretended: Callable):
    measured, _ = pretended(["step"], 60.0, build=lambda case: 1000.0)
    assert measured.rows == []
    assert measured.too_late == ["machine, matrix product 2048", "step, ResNet-18"]


# --- Rows ------------------------------------------------------------------------------------------------------------


def test_a_row_names_the_card_and_how_many_passes_were_timed_at_once(
    pretended: Callable, capsys: pytest.CaptureFixture[str]
):
    measured, workers = pretended(["layer"], None)
    first = measured.rows[0]
    assert (first["device"], first["iterations"], first["milliseconds"]) == ("Card 9", 20, 1.0)
    assert ("run", "product", 20) in workers.asked
    in_memory = {row["variant"] for row in measured.rows if row["megabytes"] is not None}
    assert in_memory == {"released", "symmetric"}
    assert {variant for do, variant, _ in workers.asked if do == "peak"} == in_memory
    printed = capsys.readouterr().out
    assert "on Card 9, where operands of float32 products may be rounded to TensorFloat-32" in printed
    assert "released, channels_first" in printed and "1.000 ms (1.000 to 1.000)" in printed


def test_a_case_that_fails_is_left_out_and_the_others_are_not(pretended: Callable):
    def too_large(case: cases.Case) -> bool:
        return case.variant == "fft" and case.dtype == "float32" and case.place == "stem"

    measured, workers = pretended(["layer"], None, too_large)
    assert len(measured.rows) == len(cases.cases(["layer"], 2, "gpu")) - 1
    assert measured.failed == ["layer, stem, fft, float32: ResourceExhaustedError: no memory for 8 GB"]
    assert workers.restarts == 1 + len({row["place"] for row in measured.rows})


def test_on_a_cpu_a_case_that_fails_ends_the_measurement(monkeypatch: pytest.MonkeyPatch):
    workers = PretendedWorkers(Clock(), lambda case: True, ["ours"], lambda case: 1.0)
    monkeypatch.setattr(
        workers, "ask", lambda do, case, seconds, **more: (_ for _ in ()).throw(RuntimeError(str(more)))
    )
    monkeypatch.setattr(driver, "Workers", lambda environments: workers)
    with pytest.raises(RuntimeError, match=r"^\{\}$"):
        driver.measure(["layer"], 2, 1, None)


def test_rows_of_a_card_are_written_and_read_again(pretended: Callable, tmp_path: Path):
    measured, _ = pretended(["layer", "engines"], None)
    benchmark_report.write(tmp_path / "rows.csv", measured.rows)
    read = benchmark_report.read(tmp_path / "rows.csv")
    assert [{**row, "iterations": int(row["iterations"])} for row in read] == measured.rows
    for rows in (read, measured.rows):
        text = benchmark_report.tables(rows)
        assert "| layer, Card 9 | implementation |" in text
        assert "| stem | released | 2 | 0.0 M | 1.00 ms, 5 MB | 1.00 ms, 5 MB |" in text
        assert "| engines, Card 9 | batch |" in text
        assert "| map of 8x8x4, fixed | 256 | 1.000 ms | 1.000 ms |  |  |" in text
    assert (tmp_path / "rows.png").exists()


def test_a_file_without_rows_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none.csv does not exist or has no rows"):
        benchmark_report.read(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("seed,accuracy\n1,0.5\n")
    with pytest.raises(ValueError, match=r"other.csv is no CSV file of python -m experiments.benchmark"):
        benchmark_report.read(tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("last", "first", "verdict"),
    [(2.0, 1.0, "channels_first, 2.00x"), (0.123, 0.246, "channels_last, 2.00x"), (1.0, 1.04, "level")],
)
def test_the_faster_data_format_is_named(last: float, first: float, verdict: str):
    def of(variant: str, milliseconds: float) -> dict[str, Any]:
        row = {**vars(CASE), "variant": variant, "macs": 1, "milliseconds": milliseconds, "least": 1.0, "most": 1.0}
        return {**row, "megabytes": None, "times_faster": None, "memory_ratio": None, "device": "Card 9"}

    rows = [of("released", last), of("released, channels_first", first)]
    head, _, line = benchmark_report.tables(rows).split("\n\n")[1].splitlines()
    assert head.startswith("| data format, Card 9 | batch |")
    assert line.startswith("| stem | 8 | released | float32 | ") and line.endswith(f" | {verdict} |")
    assert "data format" not in benchmark_report.tables(rows[:1])


# --- Processes -------------------------------------------------------------------------------------------------------


def test_a_worker_answers_what_a_gpu_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    ran: list[int] = []

    def build(case: cases.Case) -> worker.Built:
        if case.variant == "fft":
            raise ValueError("too large")
        return worker.Built(lambda times=1: ran.append(times))

    other = {"case": {**vars(CASE), "variant": "fft"}}
    requests = [
        {"do": "device"},
        {"do": "build", "case": vars(CASE), "may_fail": True},
        {"do": "run", "case": vars(CASE), "times": 5},
        {"do": "peak", "case": vars(CASE)},
        {"do": "build", **other, "may_fail": True},
        {"do": "run", "case": vars(CASE)},
        {"do": "build", "case": {**vars(CASE), "place": "block 2"}},
        {"do": "run", "case": vars(CASE), "may_fail": True},
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{json.dumps(request)}\n" for request in requests)))
    worker.work(build)
    device, _, timed, peak, failed, again, _, forgotten = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(device) == {"name", "found", "tensor_float_32"} and "CPU:0" in device["found"]
    assert timed["seconds"] >= 0 and again["seconds"] >= 0 and list(peak) == ["megabytes"]
    assert failed == {"error": "ValueError: too large"}
    assert "KeyError" in forgotten["error"]  # The places before are forgotten, with their memory.
    # Twice to warm up, then timed, then for the memory, then timed again.
    assert ran[: 4 + worker.MEMORY_RUNS] == [1, 1, 5, *[1] * worker.MEMORY_RUNS, 1]


def test_without_leave_to_fail_an_error_ends_the_worker(monkeypatch: pytest.MonkeyPatch):
    def build(case: cases.Case) -> worker.Built:
        raise ValueError("too large")

    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"do": "build", "case": vars(CASE)}) + "\n"))
    with pytest.raises(ValueError, match="too large"):
        worker.work(build)


def test_a_graph_runs_as_often_as_it_is_told():
    runs = tf.Variable(0)
    run = worker.compiled(lambda: runs.assign_add(1))
    run(5)
    run()
    assert int(runs) == 6


@pytest.mark.parametrize(("first", "shape"), [(True, (8, 64, 32, 32)), (False, (8, 32, 32, 64))])
def test_a_layer_gets_its_channels_where_it_takes_them(first: bool, shape: tuple[int, ...]):
    shapes = set()

    def layer(images: tf.Tensor) -> tf.Tensor:
        shapes.add(tuple(images.shape))
        return images

    worker.forward_and_backward(layer, CASE, [], channels_first=first)()
    assert shapes == {shape}


def test_a_process_that_does_not_answer_in_time_is_ended():
    late = pytest.raises(processes.OutOfTimeError, match=r"benchmark.ours did not answer in time")
    with contextlib.closing(processes.Worker("ours", {})) as process, late:
        process.ask("device", seconds=0.01)
    assert process.has_ended


def test_a_process_that_has_ended_is_started_again(tmp_path: Path):
    (tmp_path / "tf_keras.py").write_text("raise SystemExit")
    with contextlib.closing(processes.Workers({"release": {"PYTHONPATH": str(tmp_path)}})) as workers:
        first = workers["release"]
        with pytest.raises(RuntimeError, match=r"benchmark.release ended at Case"):
            first.ask("build", CASE)
        workers.restart_ended()
        assert first.has_ended and workers["release"] is not first


@pytest.mark.parametrize("variant", ["released", "symmetric", "fft"])
def test_each_pooling_can_be_built_in_channels_first(variant: str):
    case = cases.Case("layer", "block 4", f"{variant}, channels_first", "float32", 1, 8, 2, 2.0)
    built = ours.build(case)
    built.run(2)
    assert built.macs == ours.build(cases.Case(**{**vars(case), "variant": variant})).macs


@pytest.mark.parametrize("variant", ["matmul", "fft"])
@pytest.mark.parametrize("place", ["map of 8x8x4, fixed", "map of 8x8x4, resampled", "signal of 100x4, resampled"])
def test_each_engine_without_a_stride_to_learn_can_be_built(place: str, variant: str):
    listed = cases.cases(["engines"], 1, "gpu")
    (case,) = [case for case in listed if (case.place, case.variant) == (place, variant)]
    ours.build(cases.Case(**{**vars(case), "batch": 2})).run()


def test_no_two_cases_of_a_gpu_are_alike_and_those_of_a_cpu_are_among_them():
    on_gpu = cases.cases(cases.PARTS, 64, "gpu")
    assert len(set(on_gpu)) == len(on_gpu)
    names = {(case.part, case.place, case.variant, case.dtype) for case in on_gpu}
    assert names >= {(case.part, case.place, case.variant, case.dtype) for case in cases.cases(cases.PARTS, 64)}
    alone = [case for case in on_gpu if case.place.endswith(cases.LONE)]
    assert alone and all(case.batch == 1 for case in alone)
    same = [(cases.is_map(case.place), cases.pooling_of(case.place), case.height, case.channels) for case in on_gpu]
    engines = [(*key, case.batch, case.variant) for key, case in zip(same, on_gpu) if case.part == "engines"]
    assert len(set(engines)) == len(engines)
    assert any(case.batch > 64 for case in on_gpu if case.part == "engines")
