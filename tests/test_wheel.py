import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> str:
    result = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a clone, because a build in the checkout would leave its folders there."""
    folder = tmp_path_factory.mktemp("wheel")
    run("git", "clone", "--quiet", ROOT, folder / "source", cwd=folder)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "source", cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_its_configs(wheel: Path):
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert {path.parts[0] for path in names} == {
        "diffstride_hybrid",
        f"{'-'.join(wheel.name.split('-')[:2])}.dist-info",
    }
    package = Path("diffstride_hybrid")
    modules = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
    configs = {package / "gin_configs" / path.name for path in (ROOT / "gin_configs").glob("*.gin")}
    assert {package / "py.typed", *configs, *modules} <= names


def test_the_wheel_trains_a_shipped_config_in_a_fresh_environment(wheel: Path, tmp_path: Path):
    run(sys.executable, "-m", "venv", tmp_path / "environment", cwd=tmp_path)
    python = tmp_path / "environment" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
    arguments = ["--gin_file=digits_hybrid", "--gin_bindings=train.train.num_epochs = 1"]
    out = run(python, "-m", "diffstride_hybrid.train", *arguments, cwd=tmp_path)
    assert out.splitlines()[-1] == "files are in runs/digits_hybrid"
    folder = tmp_path / "runs" / "digits_hybrid"
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 1
    assert json.loads((folder / "run.json").read_text())["commit"] is None
    code = "import diffstride_hybrid; print(diffstride_hybrid.__file__)"
    assert str(tmp_path) in run(python, "-c", code, cwd=tmp_path)
