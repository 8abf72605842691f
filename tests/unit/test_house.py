"""Rules of the source tree: sizes, names, docstrings, imports."""

import ast
import inspect
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

from orchestrator import errors

ROOT = Path(__file__).parents[2]
WINGS = ("orch", "orchestrator", "worker")
SOURCES = sorted(path for wing in (*WINGS, "tests", "benchmarks", "examples") for path in (ROOT / wing).rglob("*.py"))
CODE = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in WINGS]
PACKAGES = sorted({path.parent for path in CODE})
BROAD = {
    "worker/supervisor/supervisor.py", "worker/supervisor/trainer_group.py", "worker/channel.py",
    "worker/trainer/shared_training.py", "worker/tracking/shipper.py", "orchestrator/cli/main.py",
    "worker/subject/tokenizer.py", "worker/saes/__main__.py",
    "worker/evaluation/run.py",
}  # fmt: skip
"""One conductor each: supervisor, its watch over the jobs of a trainer (the trouble of one must not end the others),
child processes, the jobs of a trainer, tracking thread, command line, work on SAEs, each part of an
evaluation. And a library whose errors are of class Exception."""
TENSORS_IN_ORDER = ("triton.jit", "custom_op", "register_fake")
"""Kernels, whose launch names nothing, and what torch's dispatcher calls: it has no tensors by name alone."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _definitions(path: Path) -> list[Definition]:
    return [node for node in ast.walk(_tree(path)) if isinstance(node, Definition)]


def test_ceilings() -> None:
    found = [f"{_name(path)} has over 400 lines: does it have one reason to exist?" for path in SOURCES
             if path.read_text().count("\n") > 400]  # fmt: skip
    for path, node in ((one, node) for one in SOURCES for node in _definitions(one)):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        ceiling = 200 if isinstance(node, ast.ClassDef) else 60
        if lines > ceiling and not (isinstance(node, ast.ClassDef) and path.is_relative_to(ROOT / "tests")):
            found.append(f"{_name(path)}: {node.name} has {lines} lines")
    assert not found


def test_every_file_says_what_it_is_for() -> None:
    assert not [_name(path) for path in CODE if not ast.get_docstring(_tree(path))]
    vague = {"utils", "common", "helpers", "base", "manager", "core"}
    assert not [_name(path) for path in CODE if vague & {path.stem, *path.relative_to(ROOT).parts}]


def test_positional_parameters() -> None:
    found = []
    for path, node in ((one, node) for one in CODE for node in _definitions(one)):
        if not isinstance(node, ast.ClassDef):
            names = [a.arg for a in node.args.args if a.arg not in {"self", "cls"}]
            decorators = [ast.unparse(d) for d in node.decorator_list]
            is_command = any(word in d for d in decorators for word in ("click", "option", *TENSORS_IN_ORDER))
            if len(names) > 5 and not is_command:
                found.append(f"{_name(path)}: {node.name} takes {len(names)} positional parameters")
    assert not found


def test_init_files_hold_names_alone() -> None:
    for path in (p for p in CODE if p.name == "__init__.py"):
        for node in _tree(path).body:
            assert isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign | ast.If), _name(path)


def test_every_error_has_a_sentence() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.OrchError)]
    assert len(classes) == 16
    for error in classes:
        assert error.__doc__
        assert str(error()) == error.__doc__
        assert error.__name__ in (errors.__doc__ or "")


def test_broad_excepts_live_with_the_conductors() -> None:
    for path in CODE:
        broad = [
            node
            for node in ast.walk(_tree(path))
            if isinstance(node, ast.ExceptHandler)
            and (node.type is None or "Exception" in {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)})
        ]
        allowed = _name(path) in BROAD
        assert len(broad) <= (1 if allowed else 0), f"{_name(path)}:{[b.lineno for b in broad]}"


def test_folders_hold_sixteen_files_at_most() -> None:
    """Of the two wings; `cli/commands` has one file per command."""
    for package in PACKAGES:
        files = [path for path in package.glob("*.py") if path.name != "__init__.py"]
        if _name(package) != "orchestrator/cli/commands":
            assert len(files) <= 16, f"{_name(package)} holds {len(files)} files side by side"


def test_every_package_says_what_it_is_for() -> None:
    for package in PACKAGES:
        init = package / "__init__.py"
        assert init.exists(), f"{_name(package)} has no __init__.py"
        assert ast.get_docstring(_tree(init)), f"{_name(init)} has no docstring"


def test_no_module_is_named_like_what_its_package_exports() -> None:
    for package in PACKAGES:
        modules = {path.stem for path in package.glob("*.py")} | {path.name for path in package.iterdir()}
        assert not modules & _exported(package / "__init__.py"), _name(package)


def _exported(init: Path) -> set[str]:
    """Return the names that an __init__.py imports from its modules."""
    imports = [node for node in ast.walk(_tree(init)) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def test_the_wake_up_is_a_registered_task() -> None:
    from orchestrator.dispatch import TASK_NAME
    from worker.supervisor.celery_app import app

    app.loader.import_default_modules()
    assert TASK_NAME in app.tasks


def test_no_import_circles() -> None:
    """Imports inside functions count, too: an import that must be late is a circle that was hidden."""
    modules = {_module(path): path for path in CODE}
    imports = {name: _imported(path) & modules.keys() - {name} for name, path in modules.items()}
    list(TopologicalSorter(imports).static_order())  # raises CycleError, which names the circle


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported(path: Path) -> set[str]:
    """Return what a file imports: modules, and names that may be modules; of a package alone not its own parts."""
    found: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in inner if (ROOT / name.replace(".", "/")).with_suffix(".py").exists()}
            found |= known or {node.module}
    return found


def test_import_contracts() -> None:
    lint = "from importlinter.cli import lint_imports_command as run; run()"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
