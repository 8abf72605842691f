"""Names of a package that are loaded when they are first used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_world import ROOT

LAZY = ("orchestrator.queue", "orchestrator.results")


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_and_python_find_each_name_in_one_place(package: str) -> None:
    module = importlib.import_module(package)
    source = ast.parse(Path(str(module.__file__)).read_text())
    imports = [node for node in ast.walk(source) if isinstance(node, ast.ImportFrom)]
    told = {name.name: str(node.module) for node in imports if node.col_offset for name in node.names}
    assert set(told) <= set(module.__all__)
    assert len(told) > 10
    for name in module.__all__:
        found = getattr(module, name)
        if name in told:
            assert found is getattr(importlib.import_module(told[name]), name)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", LAZY)
def test_a_package_loads_none_of_its_modules_before_a_name_is_used(package: str) -> None:
    probe = f"import sys, {package}; print(*(name for name in sys.modules if name.startswith('{package}.')))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
