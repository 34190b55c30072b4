"""Preparing data sets."""

from pathlib import Path
from typing import Any

import pytest
from support.commands import assert_one_clear_line, run_here


def test_preparing_says_what_is_prepared_where(tiny_data_dir: Path):
    result = run_here("prepare", "--name=fashion_mnist", f"--data_dir={tiny_data_dir}")
    assert result.code == 0
    assert f"fashion_mnist is prepared under {tiny_data_dir}/fashion_mnist/3.0.1" in result.out
    assert "67 train, 23 test images" in result.out


def test_preparing_from_a_folder_downloads_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The files of the real set are large: it is enough that the missing one is looked for in the folder."""
    addresses = []

    def prepare(builder: Any) -> None:
        addresses.append(builder.URL)
        raise OSError("no files")

    monkeypatch.setattr("diffstride_hybrid.prepare.prepare", prepare)
    arguments = ["--name=fashion_mnist", f"--source={tmp_path}", f"--data_dir={tmp_path}"]
    assert_one_clear_line(run_here("prepare", *arguments), "no files")
    assert addresses == [f"{tmp_path.as_uri()}/"]


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        (["--name=fashion_minst"], ["'fashion_minst'", "did you mean", "'fashion_mnist'"]),
        (["--name=fashion_mnist", "--source=/nowhere"], ["--source", "/nowhere"]),
        (["--name=cifar10", "--source=/"], ["'cifar10'", "folder"]),
        (["--name=fashion_mnist", "stray"], ["'stray'"]),
    ],
    ids=str,
)
def test_a_mistake_in_preparing_ends_in_one_clear_line(tmp_path: Path, arguments: list[str], culprits: list[str]):
    assert_one_clear_line(run_here("prepare", *arguments, f"--data_dir={tmp_path}"), *culprits)
    assert not list(tmp_path.iterdir())
