"""Every kind of mistake, in every option of every command: exit code 2, one line that says what, nothing left."""

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runs.directory import ROOT
from runs.errors import UserError
from runs.types import path_type
from tests.conftest import IMAGE_VAE, PARSERS, SCRIPTS, SMALL, load_command, parser_of

COMMANDS = (
    *("sweeps.__main__", "sweeps.collect", "sweeps.pipeline"),
    *("experiments.compare_kernels", "experiments.demo", "experiments.elbo_table", "experiments.extract_kernels"),
    *("experiments.plot_kernels", "sweeps.rank_vaes", "experiments.vae_stats"),
    "experiments.whole_kl",
    *(
        "experiments.classification",
        "experiments.convergence",
        "experiments.feature_extraction",
        IMAGE_VAE,
        *("experiments.diagnose", "experiments.predict"),
    ),
    *("data.prepare_mnist", "data.prepare_not_mnist"),
    *("benchmarks.__main__", "benchmarks.growth", "benchmarks.subsampled", "benchmarks.sweep"),
    "benchmarks.time_to_accuracy",
)
ALL_PARSERS = PARSERS | {name: parser_of(name) for name in COMMANDS}


# --- single options ---------------------------------------------------------------------------------------------------


def single_options():
    """For each option with a type or choices, values it does not take."""
    for name, parser in ALL_PARSERS.items():
        for action in parser._actions:
            if not action.option_strings or action.nargs == 0:
                continue
            option = action.option_strings[0]
            if action.choices:
                yield name, option, "nope"
            elif action.type not in (None, Path, path_type):
                for value in ("x", "nan", "-1000"):
                    yield name, option, value


@pytest.mark.parametrize("name, option, value", list(single_options()))
def test_a_value_that_an_option_does_not_take(refusal, name, option, value):
    needed = [a for a in ALL_PARSERS[name]._actions if a.required and option not in a.option_strings]
    counts = [a.nargs if isinstance(a.nargs, int) else 1 for a in needed]
    required = [
        word
        for a, n in zip(needed, counts, strict=True)
        for word in (*a.option_strings[:1], *[(a.choices or "x")[0]] * n)
    ]
    err = refusal(name, [*required, f"{option}={value}"])
    assert option in err and value in err and ("expected" in err or "choose" in err or "invalid" in err)


# --- what options say together ----------------------------------------------------------------------------------------

VAE_ARGS = ["--kernel_dim", "5", "--train", "x.npy", "--test", "x.npy"]
MISTAKES = [
    ("train-bnn.py", ["--nope", "1"], "--nope"),
    ("train-bnn.py", ["--epochs", "-3"], "at least 1"),
    ("train-bnn.py", ["--lr", "nan"], "--lr"),
    ("train-bnn.py", ["--prior", "nope"], "nope"),
    ("train-bnn.py", ["--prior_list", "sn"], "--prior_list: found 1"),
    ("train-bnn.py", ["--prior_list", "vae", "vae"], "--vae_list"),
    ("train-bnn.py", ["--prior_list", "sn", "sn", "--net_cfg", "bayes-1-0"], "deterministic"),
    ("train-bnn.py", ["--vae_list", "nowhere", "nowhere", "--prior", "vae", *SMALL], "nowhere"),
    ("train-bnn.py", ["--net_cfg", "vanilla"], "--net_cfg"),
    ("train-bnn.py", [*SMALL, "--num_examples", "5"], "--num_examples: found 5"),
    ("train-net.py", ["--model", "cifarnet", "--model_size", "1e30"], "--model_size: found '1e30'"),
    ("train-bnn.py", [*SMALL, "--num_examples", "500"], "--num_examples: found 500"),
    ("train-bnn.py", [*SMALL, "--resume", "nowhere"], "--resume"),
    ("train-bnn.py", [*SMALL, "--n_classes", "4"], "--n_classes: found 4"),
    ("train-bnn.py", ["--config", "nowhere.yaml"], "nowhere.yaml"),
    ("train-bnn.py", ["--prior_list", "vae", "vae", "vae", "--vae_list", "a", "b"], "--prior_list: found 3"),
    ("train-bnn.py", ["--bs", "1" + "0" * 20], "--bs"),
    ("train-net.py", ["--hid_dim", "3"], "--hid_dim: found 1"),
    ("train-net.py", ["--init_list", "vae", "vae", "vae"], "--init_list: found 3"),
    ("train-net.py", ["--init_list", "pretrained", "vae"], "alone"),
    ("train-net.py", ["--pretrained", "x"], "--pretrained"),
    ("train-net.py", ["--net_cfg", "vanilla-do"], "--do: found 0"),
    ("train-net.py", ["--fastconv", "2"], "--fastconv"),
    ("train-net.py", ["--decrease_from", "100"], "--decrease_from"),
    ("train-vae.py", ["--kernel_dim", "6"], "--kernel_dim: found 6"),
    ("train-vae.py", ["--kernel_dim", "5"], "--data_dir"),
    ("train-vae.py", VAE_ARGS, "--train"),
    ("train-vae.py", [*VAE_ARGS, "--var", "-1"], "--var"),
    ("train-bnn.py", ["--prior_list", "flow", "sn"], "--flow_list: found 0 entries, expected one for conv 1"),
    ("train-bnn.py", ["--prior_list", "sn", "gauss", "--filters_list", "x"], "expected one for conv 2"),
    ("train-bnn.py", ["--bound", "iwae"], "--bound: found iwae and no prior 'vae'"),
    ("train-bnn.py", ["--reverse", "train"], "--reverse"),
    ("train-bnn.py", ["--model", "cifarnet", "--hid_dim", "1", "2"], "expected --model_size for cifarnet"),
    ("train-bnn.py", ["--model_size", "2"], "--model_size: found 2, expected --hid_dim for fconv"),
    ("train-bnn.py", ["--model", "cifarnet", "--model_size", "0.001"], "--model_size"),
    ("train-bnn.py", ["--model", "cifarnet", "--data", "not-mnist"], "expected (3, 32, 32) for cifarnet"),
    ("train-bnn.py", ["--data", "mnst"], "--data: found 'mnst', expected one of mnist, not-mnist"),
    ("train-net.py", ["--data", "nowhere.npz"], "nowhere.npz: No such file or directory"),
    ("train-bnn.py", ["--model", "cifarnet", "--prior_list", "sn", "sn"], "--prior_list: found 2 entries, expected 4"),
    ("train-bnn.py", ["--vae_list", "a", "b", "c"], "--vae_list: found 3 entries, expected at most 2"),
    ("train-bnn.py", ["--flow_list", "a", "b", "c"], "--flow_list: found 3"),
    ("train-bnn.py", ["--filters_list", "a", "b", "c"], "--filters_list: found 3"),
    ("train-bnn.py", [*SMALL, "--init_list", "filters", "--filters_list", "nowhere.npy"], "nowhere.npy"),
    ("train-bnn.py", [*SMALL, "--init_list", "flow", "--flow_list", "nowhere"], "nowhere"),
    ("train-bnn.py", ["--init_list", "recon", "--vae_list", "a"], "--filters_list: found 0"),
    ("train-bnn.py", [*SMALL, "--init_list", "pretrained", "--pretrained", "nowhere"], "--pretrained"),
    ("train-bnn.py", ["--epochs", "5", "--decrease_from", "5"], "--decrease_from: found 5, expected less than"),
    ("train-bnn.py", ["--continue", "nowhere"], "nowhere/params.yaml"),
    ("train-bnn.py", ["--l2", "1"], "--l2"),
    ("train-bnn.py", ["--kernel_dim", "7"], "--kernel_dim"),
    ("train-bnn.py", ["--epoch", "7"], "--epoch"),
    ("train-bnn.py", [*SMALL, "--num_examples", "9"], "expected 10 (one per class) to 50"),
    ("train-net.py", ["--dwp_reg", "1"], "--vae_list: found 0"),
    ("train-net.py", ["--do", "0.5"], "--do: found 1 probabilities, expected 0"),
    ("train-net.py", ["--net_cfg", "vanilla-do", "--do", "0.5", "1.5"], "--do"),
    ("train-net.py", ["--net_cfg", "bayes"], "--net_cfg"),
    ("train-net.py", [*SMALL, "--resume", "nowhere"], "--resume"),
    ("train-net.py", ["--prior", "sn"], "--prior"),
    ("train-vae.py", ["--kind", "flow", "--kernel_dim", "5", "--train", "x", "--test", "x", "--z_dim", "3"], "--z_dim"),
    ("train-vae.py", ["--kind", "flow", "--kernel_dim", "5", "--train", "x", "--test", "x", "--var", "1"], "--var"),
    ("train-vae.py", [*VAE_ARGS, "--kl_warmup", "-1"], "--kl_warmup: found '-1', expected a whole number at least 0"),
    ("train-vae.py", ["--kind", "flow", "--kernel_dim", "5", "--data_dir", "x", "--kl_warmup", "1"], "--kl_warmup"),
    ("train-vae.py", [*VAE_ARGS, "--transforms", "3"], "--transforms: found 3 with --kind vae, expected --kind flow"),
    ("train-vae.py", ["--kernel_dim", "7", "--train", "x.npy"], "found neither it nor --test"),
    ("train-vae.py", ["--kernel_dim", "7", "--data_dir", "nowhere"], "--train"),
    ("train-vae.py", ["--config", "nowhere"], "--config nowhere"),
    ("experiments.extract_kernels", [], "--runs"),
    ("experiments.extract_kernels", ["--runs", "nowhere/*", "--out", "x"], "--runs: found no folder at nowhere/*"),
    ("experiments.extract_kernels", ["--runs", ".", "--out", "x"], "--runs: model.torch is missing"),
    ("experiments.plot_kernels", ["--conv", "nowhere", "--out", "x"], "--conv"),
    ("experiments.plot_kernels", ["--conv", "nowhere"], "--out"),
    ("sweeps.__main__", [], "SCRIPT: found none"),
    ("sweeps.__main__", ["--seed", "0..3"], "SCRIPT: found none"),
    ("sweeps.__main__", ["--status", "--seed", "0..3"], "SCRIPT: found a grid without it"),
    ("sweeps.__main__", ["nowhere.py", "--seed", "0..3"], "SCRIPT: found 'nowhere.py', expected train-net.py, "),
    ("sweeps.__main__", ["README.md"], "SCRIPT: found 'README.md'"),
    ("sweeps.__main__", ["train-net.py", "train-vae.py"], "unrecognized arguments: train-vae.py"),
    ("sweeps.__main__", ["train-net.py", "--cpus", "1", "2"], "unrecognized arguments: 2"),
    ("sweeps.__main__", ["train-net.py", "--seed"], "--seed: found no value"),
    ("sweeps.__main__", ["train-net.py", "--seed", "3..1"], "--seed: found 3..1"),
    ("sweeps.__main__", ["train-net.py", "--seed", "0..999999"], "--seed: found 0..999999"),
    ("sweeps.__main__", ["train-net.py", "--seed", "0..999", "--bs", "1..999"], "found a grid of 999000 trials"),
    ("sweeps.__main__", ["train-net.py", "--seed", "0..-3"], "--seed: found '0..-3', expected a whole number"),
    ("sweeps.__main__", ["train-net.py", "--seed", "1", "01"], "--seed 01: found twice, as --seed 1 too"),
    ("sweeps.__main__", ["train-net.py", "--seed", "1", "--seed", "2"], "--seed: found twice"),
    ("sweeps.__main__", ["train-net.py", "--seed", "1", "--", "--seed=2"], "--seed: found twice"),
    ("sweeps.__main__", ["train-net.py", "--seed", "1", "--", "--prior", "sn"], "unrecognized arguments: --prior"),
    ("sweeps.__main__", ["train-net.py", "--lr", "1", "-1"], "--lr: found '-1', expected a number above 0"),
    ("sweeps.__main__", ["train-net.py", "--seed", "1", "--", "--epochs", "0"], "--epochs: found '0'"),
    ("sweeps.__main__", ["train-net.py", "--seed", "1", "--", "--continue", "x"], "--continue: found in a sweep"),
    ("sweeps.__main__", ["train-bnn.py", "--prior_list", "sn sn", "sn"], "--prior_list: found 1"),
    ("sweeps.__main__", ["train-bnn.py", "--prior_list", "sn 'sn"], '--prior_list: found "sn \'sn"'),
    ("sweeps.__main__", ["train-net.py", "--grid", "nowhere.yaml"], "--grid nowhere.yaml"),
    ("sweeps.__main__", ["train-net.py", "--seed", "1", "--gpus", "1.5"], "--gpus: found 1.5"),
    ("sweeps.__main__", ["train-net.py", "--seed", "1", "--name", "../x"], "--name: found '../x'"),
    ("sweeps.__main__", ["train-net.py", "--seed", "1", "--address", "auto"], "--address: found 'auto'"),
    ("sweeps.__main__", ["train-net.py", "--seed", "1", "--address", "127.0.0.1:1"], "127.0.0.1:1 cannot be reached"),
    ("sweeps.__main__", ["--status", "--name", "nothing"], "--status: found no sweep nothing in "),
    ("experiments.elbo_table", ["--vaes", "nowhere", "--data", "x"], "--vaes nowhere/params.yaml"),
    ("experiments.vae_stats", ["--vae", "nowhere", "--data", "x"], "--vae nowhere/params.yaml"),
    ("experiments.whole_kl", ["--vae_list", "nowhere", "x"], "--vae_list entry 1"),
    ("experiments.whole_kl", ["--vae_list", "x"], "--vae_list: found 1 entries, expected one for conv 2"),
    ("experiments.whole_kl", ["--vae_list", "x", "x", "--networks", "1"], "--networks: found '1'"),
    ("experiments.demo", ["--split", "1.5"], "--split"),
    ("sweeps.collect", ["nowhere"], "PATH nowhere: found neither runs (exman-*)"),
    ("sweeps.collect", ["--by"], "--by"),
    ("sweeps.collect", ["--nope"], "--nope"),
    ("sweeps.pipeline", [], "--scale"),
    ("sweeps.pipeline", ["--scale", "huge"], "--scale"),
    ("sweeps.pipeline", ["--scale", "smoke", "--", "--cpus", "0"], "--cpus"),
    ("sweeps.pipeline", ["--scale", "smoke", "--", "--seed", "1..2"], "--: found --seed 1..2, expected --cpus"),
    ("sweeps.pipeline", ["--scale", "smoke", "--", "--dry-run"], "--: found --dry-run"),
    ("data.prepare_not_mnist", ["--fonts", "nowhere"], "--fonts: nowhere does not exist"),
    ("data.prepare_not_mnist", ["--archive", "nowhere"], "--archive: nowhere does not exist"),
    ("data.prepare_not_mnist", ["--archive", __file__, "--fonts", "b"], "--fonts: b does not exist"),
    ("data.prepare_not_mnist", ["--idx", "nowhere"], "--idx: nowhere does not exist"),
    ("data.prepare_not_mnist", ["--idx", "."], "--idx: .: found no file *-images-idx3-ubyte"),
    ("data.prepare_not_mnist", ["--archive", __file__], "expected notMNIST's tar file or folder"),
    ("benchmarks.__main__", ["--rows", "nothing"], "--rows: found no row with nothing"),
]


@pytest.mark.parametrize("name, argv, expected", MISTAKES)
def test_a_mistake(refusal, name, argv, expected):
    assert expected in refusal(name, argv)


def test_by_what_no_run_has(refusal, sandbox):
    root = sandbox / "logs" / "exman-train-net.py" / "runs" / "000001-x"
    root.mkdir(parents=True)
    (root / "params.yaml").write_text("seed: 1\nlr: 0.1\n")
    (root / "train-net.py-logs.csv").write_text("t,test_acc\n1,0.5\n")
    assert "--by: found 'nope', expected arguments of these runs: lr, seed" in refusal(
        "sweeps.collect", ["--by", "seed", "nope"]
    )


def test_a_pipeline_without_data_or_twice(refusal, sandbox):
    out = sandbox / "logs" / "pipeline" / "smoke"
    out.mkdir(parents=True)
    with FileLock(out / ".lock"):
        assert "already in use by another pipeline" in refusal("sweeps.pipeline", ["--scale", "smoke"])
    (sandbox / "data" / "not-mnist" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    assert "--data not-mnist" in refusal("sweeps.pipeline", ["--scale", "smoke"])


# Those that show in the arguments alone, without a look into a file.
AS_PROCESSES = [mistake for mistake in MISTAKES if not {"--data", "nowhere", "x.npy", __file__} & set(mistake[1])]
SEES_TORCH = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
try:
    run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
    run(sys.argv[0], run_name="__main__")
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize("i", range(12))
def test_a_mistake_in_a_process(sandbox, i):
    """Found without the second that torch takes to be imported."""
    name, argv, expected = AS_PROCESSES[i * len(AS_PROCESSES) // 12]
    command = [sys.executable, "-c", SEES_TORCH, name, *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and expected in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == "False\n"


# --- any arguments ----------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["", "0", "1", "-1", "2.5", "nan", "inf", "1e999", "vae", "sn", "bayes", "x", "--", "../x", "é"]
)


@given(st.sampled_from(SCRIPTS), st.lists(st.tuples(st.integers(0, 99), st.lists(WORDS, max_size=3)), max_size=4))
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_arguments_are_taken_or_refused(name, given_options):
    """`parse` gives arguments or a `UserError`, whatever the words after whatever options."""
    module = load_command(name)
    options = [a.option_strings[0] for a in PARSERS[name]._actions if a.dest not in ("help", "config")]
    argv = [word for i, words in given_options for word in (options[i % len(options)], *words)]
    try:
        module.parse(argv)
    except UserError as error:
        assert str(error)
