import ast
import re

from support.paths import ROOT


def promised_versions() -> dict[str, str]:
    """The lower bounds of setup.py, which reading it as a module would run."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    lists = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    required = [each for name in ("_CORE", "_TENSORFLOW", "_COMMANDS") for each in ast.literal_eval(lists[name])]
    return dict(requirement.split(">=") for requirement in required)


def test_the_promised_versions_are_the_ones_that_ci_checks():
    lines = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned == promised_versions()


def test_ci_checks_the_oldest_promised_python():
    (promised,) = re.findall(r'python_requires=">=([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert f"python{promised} " in (ROOT / ".ci" / "oldest").read_text(encoding="utf-8")
