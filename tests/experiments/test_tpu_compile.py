"""The estimates of the TPU's compiler. Without the extra tpu-aot, all but the compilation itself."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from support.paths import ROOT

from diffstride_hybrid import DiffStride
from experiments.tpu_compile import compiler
from experiments.tpu_compile import report as tpu_report

STEP = {
    "gin_file": "some_config",
    "topology": "v5e:2x2",
    "dtype_policy": "float32",
    "part": "step",
    "compiled": True,
    "batch": 128,
    "flops": 2_000_000_000,
    "bytes_accessed": 3_000_000_000,
    "estimated_cycles": 4_000_000,
    "memory_bytes": 4 * 2**30,
    "chip_memory_bytes": 16 * 2**30,
}
LAYER = {**STEP, "part": "layer", "map": "8x8x4", "place": "pooling"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.tpu_compile", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_step_is_a_row_and_a_precision_a_column():
    refused = {**STEP, "dtype_policy": "mixed_bfloat16", "compiled": False, "refused": "too large"}
    assert tpu_report.tables([STEP, refused])["tpu_step"].splitlines() == [
        "| config | TPU | batch | float32 | mixed_bfloat16 |",
        "| --- | --- | --- | --- | --- |",
        "| some_config | v5e:2x2 | 128 | 4.00 M cycles, 2 GFLOP, 3.0 GB moved, 4.00 GiB (25%) | refused: too large |",
    ]


def test_a_layer_compares_both_methods():
    lines = [{**LAYER, "method": "fft"}, {**LAYER, "method": "matmul", "estimated_cycles": 500_000}]
    row = tpu_report.tables(lines)["tpu_layer"].splitlines()[-1]
    assert row == "| some_config | 8x8x4 | v5e:2x2 | 128 | fft 4.00 M cycles, matmul 0.50 M cycles: 0.125 |"
    lines[1] |= {"estimated_cycles": None}
    assert tpu_report.tables(lines)["tpu_layer"].splitlines()[-1].endswith("| fft 4.00 M cycles, matmul no estimate |")


def test_a_line_that_is_no_json_is_named(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    path.write_text(f"{json.dumps(STEP)}\n" * 2)
    assert tpu_report.read_lines(path) == [STEP, STEP]
    path.write_text(f"{json.dumps(STEP)}\n{{'part'")
    with pytest.raises(ValueError, match=r"lines.jsonl, line 2 is not JSON \(.*\): put it right, or remove it\."):
        tpu_report.read_lines(path)


def test_the_places_are_the_poolings_of_the_config(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    request = {"gin_file": "digits_hybrid", "gin_bindings": ["resnet.resnet18.width = 4"], "part": "places"}
    monkeypatch.setattr(sys, "argv", ["compiler", json.dumps({**request, "dtype_policy": "float32"})])
    compiler.main()
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer == {"places": ["pooling", *(f"block_{i}/layer_1/pooling" for i in (2, 3, 4))]}


@pytest.mark.parametrize("method", tpu_report.METHODS)
def test_each_argument_and_result_of_a_layer_gets_a_layout_of_its_own(method: str):
    layer = DiffStride(2.0)
    layer.build((1, 8, 8, 2))
    layer.fix_crop()
    function = compiler._forward_and_backward(layer, method)
    text = compiler._stablehlo(function, (tf.TensorSpec([1, 8, 8, 2]),))
    assert "mhlo.copy" not in text
    (signature,) = re.findall(r"func\.func (?:public )?@main\(.*", text)
    changed = re.sub(r".*", compiler._with_own_layouts, signature, count=1)
    assert changed.count('mhlo.layout_mode = "auto"') == signature.count("tensor<") > 2


def test_cycles_are_summed_if_each_instruction_has_a_possible_number():
    program = 'a {"estimated_cycles":"3"} b {"estimated_cycles":4}'
    assert compiler._estimated_cycles(program) == 7
    assert compiler._estimated_cycles(program.replace("4", str(2**60))) is None
    assert compiler._estimated_cycles("") is None


def test_what_is_wrong_is_told_in_one_line():
    ended = run("--gin_file=cifar10_hybrid", "--topology=v9:2x2")
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    if importlib.util.find_spec("libtpu") is None:
        assert line.endswith("pip install -e '.[tpu-aot]'.")
    else:
        assert line.endswith("--topology must be one of v4, v5e, v6e and a shape, as in v5e:2x2, got v9:2x2.")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu-aot")
@pytest.mark.parametrize("part", ["step", "layer"])
def test_the_tpu_compiler_takes_a_small_config(part: str, tmp_path: Path):
    small = "resnet.resnet18.width = 8"
    output = tmp_path / "lines.jsonl"
    ended = run("--gin_file=digits_hybrid", f"--gin_bindings={small}", f"--part={part}", f"--output={output}")
    assert ended.returncode == 0, ended.stderr
    lines: list[dict[str, Any]] = [json.loads(line) for line in ended.stdout.splitlines()]
    assert output.read_text() == ended.stdout
    assert len(lines) == (2 if part == "step" else 2 * 4 * 2)
    for line in lines:
        assert line["compiled"] and line["fits"]
        assert line["estimated_cycles"] > 1000
        assert re.fullmatch("TPU v5.*", line["chip"])
