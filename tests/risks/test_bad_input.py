"""Every kind of mistake, in every option of every command: exit code 2, one line that says what, nothing left."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runs
from data.prepare_mnist import idx_bytes
from experiments import extract_kernels

SMALL = ["--data", "not-mnist", "--hid_dim", "3", "4", "--epochs", "2", "--bs", "32", "--device", "cpu"]
SCRIPTS = ("train-net.py", "train-vae.py", "train-bnn.py")
COMMANDS = (
    *SCRIPTS,
    "experiments.collect",
    "experiments.pipeline",
    "experiments.elbo_table",
    "experiments.extract_kernels",
    "experiments.plot_kernels",
    "experiments.sweep",
    "experiments.vae_stats",
    "experiments.demo",
    "data.prepare_mnist",
    "data.prepare_not_mnist",
    "benchmarks.__main__",
    "benchmarks.growth",
    "benchmarks.subsampled",
    "benchmarks.sweep",
    "benchmarks.time_to_accuracy",
)


@pytest.fixture
def refusal(script, sandbox, capsys):
    """`refusal(command, argv)` is the one line that a command ends with, by its own `main`."""

    def run(name, argv):
        main = (script(name) if name in SCRIPTS else importlib.import_module(name)).main
        before = set(sandbox.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            main(argv)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and len(err.splitlines()) == 1 and ": error: " in err, err
        assert set(sandbox.rglob("*")) == before, "something was written"
        return err

    return run


# --- single options ---------------------------------------------------------------------------------------------------


def parser_of(name):
    """The parser of a command."""
    found = []

    def parse_args(self, argv=None):
        found.append(self)
        raise runs.UserError("")

    whole, runs.Parser.parse_args = runs.Parser.parse_args, parse_args
    try:
        if name in SCRIPTS:
            spec = importlib.util.spec_from_file_location("x", runs.ROOT / name)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(name)
        with pytest.raises(SystemExit), open(os.devnull, "w") as nowhere:
            err, sys.stderr = sys.stderr, nowhere
            try:
                module.main([])
            finally:
                sys.stderr = err
    finally:
        runs.Parser.parse_args = whole
    return found[0]


PARSERS = {name: parser_of(name) for name in COMMANDS}


def single_options():
    """For each option with a type or choices, values it does not take."""
    for name, parser in PARSERS.items():
        for action in parser._actions:
            if not action.option_strings or action.nargs == 0:
                continue
            option = action.option_strings[0]
            if action.choices:
                yield name, option, "nope"
            elif action.type not in (None, Path):
                for value in ("x", "nan", "-1000"):
                    yield name, option, value


@pytest.mark.parametrize("name, option, value", list(single_options()))
def test_a_value_that_an_option_does_not_take(refusal, name, option, value):
    needed = [a for a in PARSERS[name]._actions if a.required and a.option_strings[0] != option]
    counts = [a.nargs if isinstance(a.nargs, int) else 1 for a in needed]
    required = [word for a, n in zip(needed, counts, strict=True) for word in (a.option_strings[0], *["x"] * n)]
    err = refusal(name, [*required, f"{option}={value}"])
    assert option in err and value in err and ("expected" in err or "choose" in err or "invalid" in err)


# --- what options say together, and files -----------------------------------------------------------------------------

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
    ("train-bnn.py", ["--model", "cifarnet", "--prior_list", "sn", "sn"], "--prior_list: found 2 entries, expected 4"),
    ("train-bnn.py", ["--vae_list", "a", "b", "c"], "--vae_list: found 3 entries, expected at most 2"),
    ("train-bnn.py", ["--flow_list", "a", "b", "c"], "--flow_list: found 3"),
    ("train-bnn.py", ["--filters_list", "a", "b", "c"], "--filters_list: found 3"),
    ("train-bnn.py", [*SMALL, "--init_list", "filters", "--filters_list", "nowhere.npy"], "nowhere.npy"),
    ("train-bnn.py", [*SMALL, "--init_list", "flow", "--flow_list", "nowhere"], "nowhere"),
    ("train-bnn.py", ["--init_list", "recon", "--vae_list", "a"], "--filters_list: found 0"),
    ("train-bnn.py", [*SMALL, "--init_list", "pretrained", "--pretrained", "nowhere"], "--pretrained"),
    ("train-bnn.py", ["--epochs", "5", "--decrease_from", "5"], "--decrease_from: found 5, expected less than"),
    ("train-bnn.py", ["--continue", "nowhere"], "--continue nowhere"),
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
    ("experiments.sweep", [], "SCRIPT: found none"),
    ("experiments.sweep", ["--seed", "0..3"], "SCRIPT: found none"),
    ("experiments.sweep", ["--status", "--seed", "0..3"], "SCRIPT: found a grid without it"),
    ("experiments.sweep", ["nowhere.py", "--seed", "0..3"], "SCRIPT: found 'nowhere.py', expected train-net.py, "),
    ("experiments.sweep", ["README.md"], "SCRIPT: found 'README.md'"),
    ("experiments.sweep", ["train-net.py", "train-vae.py"], "unrecognized arguments: train-vae.py"),
    ("experiments.sweep", ["train-net.py", "--cpus", "1", "2"], "unrecognized arguments: 2"),
    ("experiments.sweep", ["train-net.py", "--seed"], "--seed: found no value"),
    ("experiments.sweep", ["train-net.py", "--seed", "3..1"], "--seed: found 3..1"),
    ("experiments.sweep", ["train-net.py", "--seed", "0..999999"], "--seed: found 0..999999"),
    ("experiments.sweep", ["train-net.py", "--seed", "0..999", "--bs", "1..999"], "found a grid of 999000 trials"),
    ("experiments.sweep", ["train-net.py", "--seed", "0..-3"], "--seed: found '0..-3', expected a whole number"),
    ("experiments.sweep", ["train-net.py", "--seed", "1", "01"], "--seed 01: found twice, as --seed 1 too"),
    ("experiments.sweep", ["train-net.py", "--seed", "1", "--seed", "2"], "--seed: found twice"),
    ("experiments.sweep", ["train-net.py", "--seed", "1", "--", "--seed=2"], "--seed: found twice"),
    ("experiments.sweep", ["train-net.py", "--seed", "1", "--", "--prior", "sn"], "unrecognized arguments: --prior"),
    ("experiments.sweep", ["train-net.py", "--lr", "1", "-1"], "--lr: found '-1', expected a number above 0"),
    ("experiments.sweep", ["train-net.py", "--seed", "1", "--", "--epochs", "0"], "--epochs: found '0'"),
    ("experiments.sweep", ["train-net.py", "--seed", "1", "--", "--continue", "x"], "--continue: found in a sweep"),
    ("experiments.sweep", ["train-bnn.py", "--prior_list", "sn sn", "sn"], "--prior_list: found 1"),
    ("experiments.sweep", ["train-bnn.py", "--prior_list", "sn 'sn"], '--prior_list: found "sn \'sn"'),
    ("experiments.sweep", ["train-net.py", "--grid", "nowhere.yaml"], "--grid nowhere.yaml"),
    ("experiments.sweep", ["train-net.py", "--seed", "1", "--gpus", "1.5"], "--gpus: found 1.5"),
    ("experiments.sweep", ["train-net.py", "--seed", "1", "--name", "../x"], "--name: found '../x'"),
    ("experiments.sweep", ["train-net.py", "--seed", "1", "--address", "auto"], "--address: found 'auto'"),
    ("experiments.sweep", ["train-net.py", "--seed", "1", "--address", "127.0.0.1:1"], "127.0.0.1:1 cannot be reached"),
    ("experiments.sweep", ["--status", "--name", "nothing"], "--status: found no sweep nothing in "),
    ("experiments.elbo_table", ["--vaes", "nowhere", "--data", "x"], "--vaes nowhere/params.yaml"),
    ("experiments.vae_stats", ["--vae", "nowhere", "--data", "x"], "--vae nowhere/params.yaml"),
    ("experiments.demo", ["--split", "1.5"], "--split"),
    ("experiments.collect", ["nowhere"], "PATH nowhere: found neither runs (exman-*)"),
    ("experiments.collect", ["--by"], "--by"),
    ("experiments.collect", ["--nope"], "--nope"),
    ("experiments.pipeline", [], "--scale"),
    ("experiments.pipeline", ["--scale", "huge"], "--scale"),
    ("experiments.pipeline", ["--scale", "smoke", "--", "--cpus", "0"], "--cpus"),
    ("experiments.pipeline", ["--scale", "smoke", "--", "--seed", "1..2"], "--: found --seed 1..2, expected --cpus"),
    ("experiments.pipeline", ["--scale", "smoke", "--", "--dry-run"], "--: found --dry-run"),
    ("data.prepare_not_mnist", ["--fonts", "nowhere"], "--fonts: nowhere does not exist"),
    ("data.prepare_not_mnist", ["--archive", "nowhere"], "--archive: nowhere does not exist"),
    ("data.prepare_not_mnist", ["--archive", "a", "--fonts", "b"], "not allowed with"),
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
        "experiments.collect", ["--by", "seed", "nope"]
    )


def test_a_pipeline_without_data_or_twice(refusal, sandbox):
    out = sandbox / "logs" / "pipeline" / "smoke"
    out.mkdir(parents=True)
    with FileLock(out / ".lock"):
        assert "found a pipeline that runs there" in refusal("experiments.pipeline", ["--scale", "smoke"])
    (sandbox / "data" / "not-mnist" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    assert "--data not-mnist" in refusal("experiments.pipeline", ["--scale", "smoke"])


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
    done = subprocess.run(command, capture_output=True, text=True, cwd=runs.ROOT)
    assert done.returncode == 2 and expected in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == "False\n"


def test_a_folder_that_cannot_be_made(script, sandbox, monkeypatch, capsys):
    (sandbox / "file").write_text("")
    monkeypatch.setenv("DWP_PATH", str(sandbox / "file"))
    with pytest.raises(SystemExit):
        script("train-net.py").main(SMALL)
    assert "DWP_PATH: cannot make a run directory" in capsys.readouterr().err


def bad_kernels():
    good = np.zeros((10, 1, 5, 5), np.float32)
    yield "nan", np.where(good == 0, np.nan, good), "not finite"
    yield "rank", good[:, 0], "(10, 5, 5)"
    yield "size", np.zeros((10, 1, 7, 7), np.float32), "(10, 1, 7, 7)"
    yield "kind", good.astype(np.int64), "int64"
    yield "empty", good[:0], "(0, 1, 5, 5)"
    yield "large", good.astype(np.float64) + 1e300, "not finite in float32"
    yield "object", np.array([{}], dtype=object), "not a plain npy"


@pytest.mark.parametrize("what, array, expected", list(bad_kernels()), ids=lambda value: str(value)[:8])
def test_bad_kernels_are_refused(script, sandbox, capsys, what, array, expected):
    np.save(sandbox / "x.npy", array, allow_pickle=True)
    with pytest.raises(SystemExit):
        script("train-vae.py").main(["--kernel_dim", "5", "--train", str(sandbox / "x.npy"), "--test", "x"])
    assert expected in capsys.readouterr().err


HEADLESS_NPY = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': "


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", HEADLESS_NPY], ids=["empty", "zip", "truncated"])
def test_damaged_files_are_refused(script, sandbox, capsys, vae_folder, content):
    folder = vae_folder(7)
    for argv, file in (
        (["train-vae.py", "--kernel_dim", "5", "--train", "{}", "--test", "x"], sandbox / "x.npy"),
        (["train-bnn.py", *SMALL, "--init_list", "vae", "--vae_list", folder], sandbox / "vae7x7" / "vae_params.torch"),
        (["train-bnn.py", *SMALL, "--init_list", "pretrained", "--pretrained", "{}"], sandbox / "model.torch"),
        (["train-bnn.py", "--config", "{}"], sandbox / "params.yaml"),
    ):
        file.write_bytes(content)
        with pytest.raises(SystemExit) as stop:
            script(argv[0]).main([word.format(file) for word in argv[1:]])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and file.name in err and len(err.splitlines()) == 1
    assert not (sandbox / "logs").exists()


def test_states_of_other_networks_are_refused(script, sandbox, capsys):
    run = script("train-net.py").main([*SMALL, "--epochs", "1"])
    model = torch.load(run.root / "model.torch", weights_only=True)
    states = {
        "shape": {**model, "features.conv2.weight": torch.zeros(4, 3, 3, 3)},
        "missing": {name: value for name, value in model.items() if name != "classifier.bias"},
        "dense tensors": {**model, "classifier.bias": 3},
        "names": {**model, 5: torch.zeros(1)},
        "not finite": {**model, "classifier.bias": torch.full((10,), torch.nan)},
    }
    pretrained = sandbox / "state.torch"
    for expected, state in states.items():
        torch.save(state, pretrained)
        with pytest.raises(SystemExit):
            script("train-net.py").main([*SMALL, "--init_list", "pretrained", "--pretrained", str(pretrained)])
        assert expected in capsys.readouterr().err
    torch.save(states["not finite"], run.root / "model.torch")
    with pytest.raises(SystemExit):
        extract_kernels.main(["--runs", str(run.root), "--out", str(sandbox / "out"), "--min_norm_7x7", "0"])
    assert "not finite" in capsys.readouterr().err and not (sandbox / "out").exists()

    torch.save(model, run.root / "model.torch")
    opt = torch.load(run.root / "opt.torch", weights_only=True)
    opt["state"][0]["exp_avg"] = torch.zeros(2, 1, 7, 7)
    torch.save(opt, run.root / "opt.torch")
    with pytest.raises(SystemExit):
        script("train-net.py").main([*SMALL, "--resume", str(run.root)])
    assert "opt.torch" in capsys.readouterr().err
    assert len(list(run.root.parent.iterdir())) == 1


def test_images_of_another_size_are_refused(script, sandbox, capsys):
    raw = sandbox / "data" / "not-mnist" / "MNIST" / "raw"
    (raw / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((60, 32, 32))))
    with pytest.raises(SystemExit):
        script("train-net.py").main(SMALL)
    assert "(1, 28, 28)" in capsys.readouterr().err and not (sandbox / "logs").exists()


def test_a_vae_of_the_wrong_size_or_that_runs_code_is_refused(script, sandbox, capsys, vae_folder):
    small, large = vae_folder(5), vae_folder(7)
    with pytest.raises(SystemExit):
        script("train-bnn.py").main([*SMALL, "--vae_list", small, large, "--prior", "vae"])
    assert "expected 7x7 for conv 1" in capsys.readouterr().err

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(sandbox / "evil"),)

    torch.save({"x": Evil()}, sandbox / "vae5x5" / "vae_params.torch")
    with pytest.raises(SystemExit):
        script("train-bnn.py").main([*SMALL, "--vae_list", large, small, "--prior", "vae"])
    assert "cannot be loaded as data" in capsys.readouterr().err
    assert not (sandbox / "evil").exists() and not (sandbox / "logs").exists()


def test_files_of_another_script_or_run(script, sandbox, capsys):
    """`--resume` of another script's run, and of one whose network has another shape."""
    run = script("train-net.py").main([*SMALL, "--epochs", "1"])
    for argv in (["train-bnn.py", *SMALL], ["train-net.py", *SMALL, "--hid_dim", "3", "5"]):
        with pytest.raises(SystemExit):
            script(argv[0]).main([*argv[1:], "--resume", str(run.root)])
        err = capsys.readouterr().err
        assert f"--resume {run.root}/model.torch" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"z_dim": None}, "z_dim is None"),
        ({"hidden_dim": -4}, "hidden_dim is -4"),
        ({"z_dim": 10**9}, "z_dim is 1000000000"),
        ({"kernel_dim": 6}, "kernel_dim is 6"),
        ({"var": "much"}, "var"),
        ({"var": -1}, "var"),
        ({"kind": "flow"}, "found a flow, expected a vae"),
        ({"z_dim": [2]}, "z_dim is [2]"),
        ({"hidden_dim": 8}, "expected torch.float32 of shape"),
    ],
)
def test_a_vae_folder_with_senseless_params(refusal, sandbox, vae_folder, change, expected):
    folder = vae_folder(7)
    params = yaml.safe_load((sandbox / "vae7x7" / "params.yaml").read_text())
    (sandbox / "vae7x7" / "params.yaml").write_text(yaml.safe_dump({**params, **change}))
    err = refusal("train-bnn.py", [*SMALL, "--init_list", "vae", "--vae_list", folder])
    assert expected in err and "--vae_list entry 1" in err


def test_a_vae_folder_without_a_file(refusal, sandbox, vae_folder):
    folder = vae_folder(7)
    for name in ("vae_params.torch", "params.yaml"):
        (sandbox / "vae7x7" / name).unlink()
        assert name in refusal("train-bnn.py", [*SMALL, "--init_list", "vae", "--vae_list", folder])


# --- any arguments ----------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["", "0", "1", "-1", "2.5", "nan", "inf", "1e999", "vae", "sn", "bayes", "x", "--", "../x", "é"]
)


@given(st.sampled_from(SCRIPTS), st.lists(st.tuples(st.integers(0, 99), st.lists(WORDS, max_size=3)), max_size=4))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_arguments_are_taken_or_refused(name, given_options):
    """`parse` gives arguments or a `UserError`, whatever the words after whatever options."""
    spec = importlib.util.spec_from_file_location("x", runs.ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = [a.option_strings[0] for a in PARSERS[name]._actions if a.dest not in ("help", "config")]
    argv = [word for i, words in given_options for word in (options[i % len(options)], *words)]
    try:
        module.parse(argv)
    except runs.UserError as error:
        assert str(error)
