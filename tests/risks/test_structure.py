"""The structure that README and models/README.md promise: small files, imports that go down, three diffs that work."""

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest

from runs.directory import ROOT

SOURCES = [path for path in ROOT.rglob("*.py") if not {".venv", ".git"} & set(path.relative_to(ROOT).parts)]
ROOMS = ["benchmarks", "experiments", "sweeps", "utils", "runs", "models", "data"]  # from the top down


def test_no_file_is_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert len(lengths) > 50 and {name: n for name, n in lengths.items() if n >= 400} == {}


def test_no_test_file_imports_another():
    """What tests share stands in a conftest.py or a file that is no test."""
    found = [
        str(file)
        for file in (ROOT / "tests").rglob("*.py")
        if re.search(r"^\s*(from|import) tests\S*\.test_", file.read_text(), re.M)
    ]
    assert not found


@pytest.mark.parametrize("file", ["utils.py", "hubconf.py", "train-net.py", "train-vae.py", "train-bnn.py"])
def test_files_of_the_top_level_import_from_lower_rooms_alone(file):
    """The packages are checked by import-linter in `make lint`; these files belong to no package."""
    nodes = list(ast.walk(ast.parse((ROOT / file).read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    lower = ROOMS[ROOMS.index("runs" if file == "utils.py" else "utils") :]
    found = {name.split(".")[0] for name in names} & {*ROOMS, "tests"}
    assert found and found <= set(lower)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with the diffs of models/README.md applied: a prior, a data set and a network more."""
    if not shutil.which("git"):
        pytest.skip("git is not installed, which applies the diffs")
    copy = tmp_path_factory.mktemp("extended")
    for name in ("models", "runs", "data"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("MNIST", "not-mnist", "fconv", "cifar"))
    for name in ("utils.py", "train-net.py", "train-bnn.py"):
        shutil.copy(ROOT / name, copy)
    diffs = re.findall(r"^```diff\n(.*?)^```", (ROOT / "models" / "README.md").read_text(), re.S | re.M)
    assert len(diffs) == 3
    for diff in diffs:
        # GIT_DIR: `git apply` would otherwise take a repository above the folder for its own.
        env = os.environ | {"GIT_DIR": str(copy / "none")}
        done = subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=copy, env=env, capture_output=True)
        assert done.returncode == 0, done.stderr
    return copy


def run(extended, tmp_path, *argv):
    env = os.environ | {"DWP_PATH": str(tmp_path / "logs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *argv], cwd=extended, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


DATA = ["--data", "stripes", "--num_examples", "20", "--epochs", "2", "--device", "cpu"]


def test_a_new_prior_data_set_and_network(extended, tmp_path):
    network = ["--model", "fconv5x5", "--hid_dim", "3", "4"]
    out = run(extended, tmp_path, "train-bnn.py", *DATA, *network, "--prior", "laplace", "--ens", "2")
    assert re.search(r"^ +2 +[\d.]", out, re.M)
    run(extended, tmp_path, "train-net.py", *DATA, *network)


def test_the_new_priors_kl_is_the_integral(extended):
    """KL(N(m, s^2) || Laplace(0, b)) per weight, by quadrature, against the mean of many draws."""
    code = """
import math, numpy as np, torch
from scipy import integrate, stats
from models.configs import PRIORS, imported
torch.manual_seed(0)
prior = imported(PRIORS["laplace"].builds)(0.5)
mean, log_variance = torch.full((100, 100, 5, 5), 0.3), torch.full((100, 100, 5, 5), -2.0)
found = prior.kl(mean, log_variance).item() / mean.numel()
q, p = stats.norm(0.3, math.exp(-1)), stats.laplace(0, 0.5)
points = [-4, 0, 5]
expected = sum(
    integrate.quad(lambda w: q.pdf(w) * (q.logpdf(w) - p.logpdf(w)), a, b)[0] for a, b in zip(points, points[1:])
)
assert abs(found - expected) < 0.01, (found, expected)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=extended, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
