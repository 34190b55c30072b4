"""Preparing data sets."""

from pathlib import Path

import pytest
from support.cifar_archives import cifar_files, extract
from support.commands import assert_one_clear_line, run_here


def test_preparing_says_what_is_prepared_where(tiny_data_dir: Path):
    result = run_here("prepare", "--name=fashion_mnist", f"--data_dir={tiny_data_dir}")
    assert result.code == 0
    assert f"fashion_mnist is prepared under {tiny_data_dir}/fashion_mnist/3.0.1" in result.out
    assert "67 train, 23 test images" in result.out


def test_preparing_from_a_folder_needs_no_network(tmp_path: Path):
    extract(tmp_path / "source", cifar_files("cifar10", "python"))
    result = run_here("prepare", "--name=cifar10", f"--source={tmp_path / 'source'}", f"--data_dir={tmp_path / 'data'}")
    assert result.code == 0
    assert f"cifar10 is prepared under {tmp_path}/data/cifar10/3.0.2: 15 train, 6 test images" in result.out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits", "digits needs no preparation: its images come with"),
        ("./photos", "are read as"),
        ("photos", "photos needs no preparation: its images are read as they are."),
    ],
)
def test_what_needs_no_preparation_is_told(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    result = run_here("prepare", f"--name={name}", f"--data_dir={tmp_path / 'data'}")
    assert (result.code, result.err) == (0, "")
    assert words in result.out
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("source", [True, False])
def test_a_folder_without_splits_is_no_prepared_set(source: bool, tmp_path: Path):
    """TensorFlow Datasets would reuse it."""
    (tmp_path / "fashion_mnist/3.0.1").mkdir(parents=True)
    arguments = ["--name=fashion_mnist", f"--data_dir={tmp_path}", *([f"--source={tmp_path}"] if source else [])]
    assert_one_clear_line(run_here("prepare", *arguments), "fashion_mnist/3.0.1 is incomplete", "move it away")


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        (
            ["--name=fashion_minst"],
            [
                "'fashion_minst': --name is 'digits', a",
                "did you mean",
                "'fashion_mnist'",
            ],
        ),
        (["--name=fashion_mnist", "--source=/nowhere"], ["--source", "/nowhere"]),
        (["--name=cifar10", "--source=/"], ["'cifar10'", "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"]),
        (["--name=rock_paper_scissors", "--source=/"], ["rps-test-set.zip, rps.zip"]),
        (["--name=fashion_mnist", "stray"], ["'stray'"]),
        (["--name=./photso"], ["./photso", "does not exist"]),
    ],
    ids=str,
)
def test_a_mistake_in_preparing_ends_in_one_clear_line(tmp_path: Path, arguments: list[str], culprits: list[str]):
    assert_one_clear_line(run_here("prepare", *arguments, f"--data_dir={tmp_path}"), *culprits)
    assert not list(tmp_path.iterdir())
