"""The set-up hangs together: versions, Makefile, README, parameter files, and the notebooks as they are committed."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMS = sorted(p for p in (ROOT / "params").rglob("*") if p.suffix in (".yaml", ".yml"))

#: The notebooks that a reader is promised.
PROMISED = [
    "00_tour", "01_generate_data", "02_train", "03_evaluate", "04_match_a_sound", "06_bring_your_own_vst3",
    "08_benchmarks", "09_search",
]  # fmt: skip

#: Which notebook the files of a folder of params/ are for.
NOTEBOOK_OF = {
    "tour": "00_tour",
    "generate": "01_generate_data",
    "train": "02_train",
    "evaluate": "03_evaluate",
    "match": "04_match_a_sound",
    "bring": "06_bring_your_own_vst3",
    "benchmarks": "08_benchmarks",
    "search": "09_search",
}

#: A path that means something on one machine only, but no relative path (`docs/home/`) and no web address.
MACHINE_PATH = re.compile(
    r"(?<![\w.~)/-])(?:file://)?/(?:home|root|tmp|work|Users|private|mnt|opt|usr|var)/[^\s'\"<>]*"
    r"|\b[A-Za-z]:\\[^\s'\"<>]+"
)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- versions ---------------------------------------------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def locked() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(line.partition(" #")[0]) for line in lines if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("requirement", sum(EXTRAS.values(), PROJECT["dependencies"]))
def test_the_lock_holds_a_version_that_is_asked_for(requirement):
    asked = Requirement(requirement)
    versions = [
        str(r.specifier)[2:] for r in locked() if canonicalize_name(r.name) == canonicalize_name(asked.name)
    ]
    assert asked.name == "synthnb" or (versions and all(asked.specifier.contains(v) for v in versions)), (
        "make lock"
    )


def test_conda_installs_what_make_does():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    install = re.search(r"--constraint .*", makefile())[0].replace("'", "")
    assert " ".join(conda[-1]["pip"]) == install


def imported(paths: Iterable[Path]) -> set[str]:
    """The packages that these modules import, by the names that they are installed by."""
    trees = [ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for path in paths]
    nodes = [node for tree in trees for node in tree]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    modules = {name.partition(".")[0] for name in names} - {"synthnb", *sys.stdlib_module_names}
    installed = packages_distributions()
    return {canonicalize_name(installed.get(module, [module])[0]) for module in modules}


def test_what_is_imported_is_declared_and_the_other_way_round():
    def names(requirements: list[str]) -> set[str]:
        return {canonicalize_name(Requirement(r).name) for r in requirements}

    package = [p for p in (ROOT / "synthnb").rglob("*.py") if not {"tests", "tools"} & set(p.parts)]
    needed = imported(package)
    assert names(PROJECT["dependencies"]) <= needed, "nothing imports it: out"
    optional = names(EXTRAS["notebooks"] + EXTRAS["dask"] + EXTRAS["music2latent"])
    assert needed <= names(PROJECT["dependencies"]) | optional, "pyproject.toml does not ask for it"


# --- Makefile and README ----------------------------------------------------------------------------------------------


def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([A-Za-z][\w-]*)\s*:(?!=)", makefile(), flags=re.MULTILINE))


def code_in(markdown: str) -> str:
    """The fenced blocks and `inline code` of a markdown text."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(fenced + re.findall(r"`([^`\n]+)`", rest))


def test_make_help_lists_every_target():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    for arguments in (["help"], []):
        command = ["make", "--no-print-directory", *arguments]
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        listed = set(re.findall(r"^\s*make ([\w-]+)\s+\S", run.stdout, flags=re.MULTILINE))
        assert listed == makefile_targets()


def test_every_target_is_phony():
    """A file that happens to be called `test` or `data` must not stop `make test`."""
    phony = set(" ".join(re.findall(r"^\.PHONY:(.*)$", makefile(), flags=re.MULTILINE)).split())
    assert phony == makefile_targets()


@pytest.mark.parametrize("name", ["README.md", "datasets/examples/README.md", "Makefile"])
def test_commands_and_files_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    code = text if name == "Makefile" else code_in(text)
    commands = set(re.findall(r"(?:^|[;&|`]|: )\s*make ([a-z][\w-]*)", code, flags=re.MULTILINE))
    assert commands <= makefile_targets(), "no such Makefile target"
    files = set(re.findall(r"\b(?:notebooks|params|datasets/examples|synthnb)/[\w./-]*\w\.\w+", code))
    examples = {f for f in files if "NAME" in f}
    assert [f for f in sorted(files - examples) if not (ROOT / f).is_file()] == []


# --- parameter files --------------------------------------------------------------------------------------------------


def parameters(notebook: Path) -> dict[str, dict]:
    """What papermill reads from the cell tagged `parameters`: {name: {inferred_type_name, default, help}}."""
    return papermill.inspect_notebook(str(notebook))


@pytest.mark.parametrize("path", PARAMS, ids=relative)
def test_parameter_files_hold_only_parameters_of_their_notebook(path):
    """Papermill ignores a key that is no parameter, so a typo would silently run with the default."""
    folder = path.relative_to(ROOT / "params").parts[0]
    assert folder in NOTEBOOK_OF, f"params/{folder}/ belongs to no notebook; add it to NOTEBOOK_OF"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict), "a parameter file is a mapping of names to values"
    known = parameters(ROOT / "notebooks" / f"{NOTEBOOK_OF[folder]}.ipynb")
    assert sorted(set(values) - set(known)) == [], f"not parameters of {NOTEBOOK_OF[folder]}"


# --- notebooks --------------------------------------------------------------------------------------------------------


def read_notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [c for c in read_notebook(path).cells if c.cell_type == "code" and c.source.strip()]


def printed(output: nbformat.NotebookNode) -> str:
    """The text of an output, without pictures and embedded data (whose base64 may spell anything)."""
    texts = [output.get("text", ""), *output.get("traceback", [])]
    texts += [
        v if isinstance(v, str) else str(v)
        for k, v in output.get("data", {}).items()
        if not k.startswith("image/png")
    ]
    return re.sub(r"base64,[A-Za-z0-9+/=\s]+", "base64,", "\n".join(texts))


def test_the_promised_notebooks_are_there():
    assert sorted(set(PROMISED) - {p.stem for p in NOTEBOOKS}) == []


@each_notebook
def test_notebook_is_small(path):
    assert path.stat().st_size <= 300_000, f"{path.stat().st_size:,} bytes; keep a notebook under 300 kB"


@each_notebook
def test_notebook_has_one_cell_of_documented_parameters(path):
    cells = [c for c in read_notebook(path).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1, "exactly one cell must be tagged 'parameters'"
    assert not any("injected-parameters" in c.metadata.get("tags", []) for c in read_notebook(path).cells), (
        "this is papermill's copy, not the notebook itself"
    )

    names = []
    for statement in ast.parse(cells[0].source).body:
        line = ast.unparse(statement)
        assert isinstance(statement, ast.AnnAssign), (
            f"{line!r}: write it as `name: type = value  # what it is`"
        )
        names.append(statement.target.id)
    known = parameters(path)
    assert list(known) == names, (
        "papermill cannot read every line (one `=` a line; types like `str`, `list[int]`)"
    )
    for name, parameter in known.items():
        assert parameter["inferred_type_name"] != "None", f"{name} has no type that papermill can read"
        assert parameter["help"], f"{name} has no trailing comment that says what it is"


@each_notebook
def test_notebook_was_run_from_top_to_bottom(path):
    cells = code_cells(path)
    counts = [c.execution_count for c in cells]
    assert counts == list(range(1, len(cells) + 1)), "restart the kernel, run all cells, save"
    errors = [o.evalue for c in cells for o in c.outputs if o.output_type == "error"]
    assert errors == []


@each_notebook
def test_notebook_shows_no_path_of_the_machine_it_ran_on(path):
    paths = [m for c in code_cells(path) for o in c.outputs for m in MACHINE_PATH.findall(printed(o))]
    assert paths == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("saved to /home/ann/out.wav", True),
        ("File '/var/folders/x.py', line 1", True),
        ("file:///Users/ann/x", True),
        (r"C:\Users\ann\x", True),
        ("../outputs/demo/match.json", False),
        ("https://example.org/home/page", False),
        ("datasets/home/shard.h5", False),
    ],
)
def test_what_counts_as_a_machine_path(text, found):
    assert bool(MACHINE_PATH.search(text)) is found
