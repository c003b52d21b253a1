"""The house holds: import directions, one importer of deepspeed, top level, sizes."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Lower floors first; a module may import from its own floor and those below.
FLOORS = [
    {
        "sat_udpdiff.config*",
        "sat_udpdiff.colormaps",
        "sat_udpdiff.diffusion",
        "sat_udpdiff.free_port",
    },
    {
        "sat_udpdiff.encoders",
        "sat_udpdiff.model",
        "sat_udpdiff.parallel",
        "sat_udpdiff.sat_compat",
        "sat_udpdiff.distributed",
        "data_loaders",
    },
    {
        "sat_udpdiff.evaluation",
        "sat_udpdiff.generation",
        "sat_udpdiff.held_out",
        "sat_udpdiff.loading",
        "sat_udpdiff.outputs",
        "sat_udpdiff.pipeline",
        "sat_udpdiff.plan",
        # What evaluation looks at the tiny world with; the rest of the package makes things.
        "sat_udpdiff.tiny.clips",
        "sat_udpdiff.tiny.judge*",
        "sat_udpdiff.training",
        "sat_udpdiff.weights",
    },
    {
        "sat_udpdiff.ablate",
        "sat_udpdiff.ablation",
        "sat_udpdiff.convert",
        "sat_udpdiff.evaluate",
        "sat_udpdiff.held_out_samples",
        "sat_udpdiff.sample",
        "sat_udpdiff.tiny",
        "sat_udpdiff.train",
    },
]
TOP_LEVEL = {
    "sat_udpdiff", "launch", "configs", "data_loaders", "tests",
    "pyproject.toml", "README.md", "Makefile", "LICENSE", "CHANGELOG.md",
}  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for package in ("sat_udpdiff", "data_loaders"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def floor(module: str) -> int | None:
    for number, names in enumerate(FLOORS):
        for name in names:
            head = name.removesuffix("*")
            if module == head or module.startswith((head + ".", head if head != name else "\0")):
                return number
    return None


def imports(path: Path) -> set[str]:
    """Every module named in an import statement, wherever it stands."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named.add(node.module)
            named |= {f"{node.module}.{alias.name}" for alias in node.names}
    return named


MODULES = modules()


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"sat_udpdiff", "data_loaders"}))
def test_every_module_stands_on_a_floor_and_imports_downwards(module: str) -> None:
    own = floor(module)
    assert own is not None, f"{module} stands on no floor: add it to FLOORS"
    upwards = {name for name in imports(MODULES[module]) & set(MODULES) if (floor(name) or 0) > own}
    assert not upwards, f"{module} imports from a floor above its own: {sorted(upwards)}"


def test_only_the_engine_imports_deepspeed() -> None:
    importers = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == "deepspeed" for name in imports(path))
    }
    assert importers == {"sat_udpdiff.training.engine"}


def test_model_code_is_single_device_code() -> None:
    for module, path in MODULES.items():
        if module.startswith(("sat_udpdiff.model", "sat_udpdiff.diffusion")):
            assert not any(name.startswith("torch.distributed") for name in imports(path)), module


def test_no_file_shadows_a_package_that_we_import() -> None:
    # Scripts in sat_udpdiff/ put that folder first on sys.path.
    top = {path.stem for path in (ROOT / "sat_udpdiff").glob("*") if path.name != "__pycache__"}
    outside = {name.split(".")[0] for path in MODULES.values() for name in imports(path)}
    assert not top & (outside - {"sat_udpdiff", "data_loaders"})


def test_nothing_else_lies_at_the_top_level() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: git ls-files failed")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_and_functions_fit_the_house(module: str) -> None:
    text = MODULES[module].read_text()
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 80, f"{module}:{node.name} is too long"


@pytest.mark.parametrize(
    ("module", "name", "limit"),
    [
        ("sat_udpdiff.training.loop", "train_step", 45),
        ("sat_udpdiff.diffusion.loss", "diffusion_loss", 60),
        ("sat_udpdiff.diffusion.samplers", "ddim", 60),
        ("sat_udpdiff.diffusion.samplers", "dpmpp_2m_sde", 60),
    ],
)
def test_the_hearts_fit_on_one_screen(module: str, name: str, limit: int) -> None:
    tree = ast.parse(MODULES[module].read_text())
    (heart,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
    assert heart.end_lineno is not None
    assert heart.end_lineno - heart.lineno + 1 <= limit
