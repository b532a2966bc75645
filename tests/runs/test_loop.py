"""The loop of a run: a loss or a parameter that is not finite ends the run, and nothing is written of it."""

from argparse import Namespace

import pytest
import torch

from runs.errors import UserError
from runs.loop import CHECK_EVERY, Run, split_batches
from tests.conftest import SMALL

ARGS = Namespace(tmp=False, continue_run=None, tensorboard=0, checkpoint_freq=0, eval_freq=1)


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("net", ["--lr", "1e30"], "not finite: the cross-entropy"),
        ("net", ["--l2", "1e38"], "not finite: the l2 term"),
        ("bnn-dwp", ["--bs", "30"], "step 1 (epoch 1): not finite: the KL of features.conv2; expected numbers"),
        ("bnn", ["--lr", "1e30"], "not finite: "),
        ("vae", ["--lr", "1e30"], "not finite: "),
    ],
)
def test_a_loss_that_is_not_finite(name, options, expected, script, sandbox, small_run, capsys):
    file, argv = small_run(name)
    if name == "bnn-dwp":
        path = sandbox / "vae5x5" / "vae_params.torch"
        state = torch.load(path, weights_only=True)
        state["decoder.fc_mu.0.bias"].fill_(3e38)
        torch.save(state, path)
    with pytest.raises(SystemExit) as stop:
        script(file).main([*argv, *options, "--eval_freq", "100"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1
    assert "step " in err and expected in err and "checkpoint" in err
    for log in sandbox.glob("logs/*/runs/*/*-logs.csv"):
        assert "nan" not in log.read_text() and "inf" not in log.read_text()


def test_terms_are_checked_every_hundred_steps(sandbox):
    """And at once after the steps of an epoch, before a row or a checkpoint is written."""
    assert CHECK_EVERY == 100
    for n, step in ((250, 100), (7, 7)):
        run = Run("train-net.py", ARGS, torch.device("cpu"), {})
        run.track(totals=torch.zeros(1))
        line = rf"step {step} \(epoch 1\): not finite: second; expected numbers; no checkpoint has been written yet"
        with pytest.raises(UserError, match=line):
            for _ in run.epochs(1):
                for _ in run.batches(n, 1):
                    value = torch.inf if run.step == 3 else 1.0
                    run.require_finite({"first": torch.tensor(1.0), "second": torch.tensor(value)})
        assert run.step == step and not list(run.root.glob("*.torch"))


@pytest.mark.parametrize("every, freq, expected", [(-1.0, 0, [1, 2, 3, 4]), (1e9, 0, [4]), (-1.0, 3, [3, 4])])
def test_checkpoints_of_a_run_without_evaluations(every, freq, expected, sandbox, monkeypatch):
    """After the epochs that end a while after the last one, and after the last epoch."""
    found = []
    monkeypatch.setattr("runs.loop.CHECKPOINT_EVERY", every)
    monkeypatch.setattr(Run, "checkpoint", lambda self: found.append(self.epoch))
    args = Namespace(**vars(ARGS) | {"checkpoint_freq": freq})
    run = Run("train-net.py", args, torch.device("cpu"), {})
    run.track(totals=torch.zeros(1))
    assert list(run.epochs(4)) == [1, 2, 3, 4] and found == expected


def test_a_value_of_the_log_that_is_not_finite(sandbox):
    run = Run("train-net.py", ARGS, torch.device("cpu"), {})
    with pytest.raises(UserError, match="not finite: test_nll;"):
        run.log(1, train_nll=1.0, test_nll=float("nan"))
    assert not run.rows and not list(run.root.glob("*-logs.*"))


def test_parameters_that_are_not_finite_make_no_checkpoint(script, sandbox, monkeypatch, capsys):
    """A gradient may be infinite where the loss is not."""

    def step(self, closure=None):
        next(iter(self.param_groups[0]["params"])).data.fill_(torch.inf)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(SystemExit):
        script("train-net.py").main([*SMALL, "--epochs", "1", "--bs", "60", "--tmp"])
    assert "not finite" in capsys.readouterr().err and not list(sandbox.glob("logs/*/tmp/*/checkpoint.torch"))


@pytest.mark.parametrize("n, size, least, expected", [(9, 4, 2, [4, 5]), (9, 4, 1, [4, 4, 1]), (8, 4, 2, [4, 4]),
                                                      (1, 4, 2, [1]), (0, 4, 2, []), (3, 2, 2, [3])])  # fmt: skip
def test_a_last_batch_that_is_too_small_is_joined(n, size, least, expected):
    batches = split_batches(torch.arange(n), size, least)
    assert [len(batch) for batch in batches] == expected
    assert torch.cat([*batches, torch.arange(0)]).tolist() == list(range(n))
