"""Somebody's own network made Bayesian: every option of a conv, shared and nested layers, and a resnet18."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import utils
from models.bayes import BayesConv2d, bayesian_layers, bayesianize, kl, predict, set_mode
from models.build import build_vae
from models.priors import DeepWeightPrior, NormalPrior
from runs.directory import ROOT
from tests.models.reference import CONVS


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return build_vae(3, 2, 4)


@pytest.mark.parametrize("options", [*CONVS, {"bias": False, "stride": 3}], ids=str)
def test_every_option_of_a_conv(options, vae):
    """Mean, moments, draws of the weights and KL are those of a layer that is built by hand."""
    torch.manual_seed(1)
    conv, x = nn.Conv2d(2, 4, 3, **options), torch.randn(3, 2, 9, 9)
    built = BayesConv2d(2, 4, 3, log_variance=-3.0, **options)
    built.mean.load_state_dict(conv.state_dict())
    built.prior = DeepWeightPrior(vae)
    with torch.no_grad():
        expected = conv(x)
    net = bayesianize(nn.Sequential(conv, nn.ReLU()), {3: vae}, log_variance=-3.0)
    assert net[0].mean is conv and isinstance(net[0].prior, DeepWeightPrior)
    for mode in ("det", "stoch", "weights"):
        found = []
        for layer in (built, net[0]):
            layer.mode = mode
            torch.manual_seed(2)
            found.append(layer(x))
        torch.testing.assert_close(*found)
        if mode == "det":
            torch.testing.assert_close(found[1], expected)
    torch.manual_seed(3)
    value = built.kl()
    torch.manual_seed(3)
    torch.testing.assert_close(kl(net), value)


class Nested(nn.Module):
    """A conv that is used under two names, a conv of another size, a transposed one, and one that is Bayesian."""

    def __init__(self):
        super().__init__()
        self.first = self.again = nn.Conv2d(1, 2, 3, padding=1)
        self.inner = nn.ModuleDict({"conv": nn.Conv2d(2, 2, (1, 3)), "up": nn.ConvTranspose2d(2, 2, 3)})
        self.own = BayesConv2d(2, 2, 3)


def test_layers_of_a_nested_network(vae):
    net = Nested().double()
    own, up, weight = net.own, net.inner["up"], net.first.weight.clone()
    assert bayesianize(net, {3: vae}, scale=0.3) is net
    assert net.first is net.again and isinstance(net.first, BayesConv2d) and torch.equal(net.first.mean.weight, weight)
    assert net.own is own and net.inner["up"] is up and len(bayesian_layers(net)) == 3
    wide = net.inner["conv"]
    assert isinstance(wide.prior, NormalPrior) and wide.prior.scale == 0.3
    assert {p.dtype for p in net.parameters()} == {torch.float64} and torch.isfinite(kl(net))
    conv = nn.Conv2d(1, 1, 3)
    assert bayesianize(conv, {3: vae}).mean is conv


def test_kernels_of_the_prior(vae):
    """With `draw` the means of a conv of the VAE's size are kernels that its decoder gives; other convs keep theirs."""
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 2, 5))
    before = net[1].weight.clone()
    bayesianize(net, {3: vae}, draw=True)
    codes = torch.cartesian_prod(*[torch.linspace(-6, 6, 400)] * 2)[..., None, None]
    decoded = vae.decode(codes)[0].flatten(1)
    distances = torch.cdist(net[0].mean.weight.detach().flatten(1), decoded).min(1).values
    assert distances.max() < 0.1 * decoded.std(0).norm() and torch.equal(net[1].mean.weight, before)


def test_predictions_average_draws_of_the_weights(vae):
    """Mean and variance of a probability over draws, against a network whose weights are drawn by hand."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5), nn.Flatten())
    plain, x, n = copy.deepcopy(net[0]), torch.randn(2, 1, 3, 3), 3000
    bayesianize(net, {3: vae}, log_variance=-2.0).train()
    net[0].mode = "det"
    found = predict(net, x, n)[:, :, 0]
    assert net[0].mode == "det" and net[1].training
    drawn = []
    with torch.no_grad():
        mean = plain.weight.clone()
        for _ in range(n):
            plain.weight.copy_(mean + math.exp(-1) * torch.randn_like(mean))
            drawn.append(plain(x).flatten(1).softmax(1)[:, 0])
    drawn = torch.stack(drawn)
    assert ((found.mean(0) - drawn.mean(0)).abs() < 7 * drawn.std(0) / math.sqrt(n)).all()
    assert ((found.std(0) / drawn.std(0) - 1).abs() < 0.15).all()


@pytest.mark.parametrize(
    "wrap",
    [torch.nn.utils.spectral_norm, lambda conv: prune.l1_unstructured(conv, "weight", 0.5)],
    ids=["norm", "prune"],
)
def test_a_conv_whose_weight_is_computed_stays(wrap, vae):
    """Its `weight` is that of the last call: draws of it would not see weights that were loaded after this call."""
    nets = []
    for _ in range(2):
        torch.manual_seed(6)
        nets.append(nn.Sequential(nn.Conv2d(1, 2, 3), wrap(nn.Conv2d(2, 2, 3)), nn.Flatten()))
    net, other = nets
    x = torch.randn(2, 1, 5, 5)
    bayesianize(net, {3: vae}, log_variance=-60.0).eval()
    assert len(bayesian_layers(net)) == 1 and type(net[1]) is nn.Conv2d
    net[1].load_state_dict({name: 3 * value for name, value in other[1].state_dict().items()})
    other[1].load_state_dict(net[1].state_dict())
    torch.testing.assert_close(predict(net, x, 1)[0], other.eval()(x).softmax(1).detach())


@pytest.mark.parametrize("scale", [0, -1, math.nan])
def test_scales_that_no_prior_has(scale):
    with pytest.raises(ValueError, match="scale: found"):
        bayesianize(nn.Conv2d(1, 1, 3), {}, scale=scale)


@pytest.mark.parametrize(
    "net, k, message",
    [(nn.Conv2d(1, 1, 3), 5, "found a VAE of 3x3 kernels for 5"), (nn.Linear(2, 2), 3, "found no torch.nn.Conv2d")],
)
def test_mistakes(net, k, message, vae):
    with pytest.raises(ValueError, match=message):
        bayesianize(net, {k: vae})


def test_convs_that_share_their_weights(vae):
    """Two modules would have two posteriors of one weight. One module at two places is one posterior."""
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    net[1].weight = net[0].weight
    with pytest.raises(ValueError, match="net: found convs that share their weights"):
        bayesianize(net, {3: vae})
    conv = nn.Conv2d(2, 2, 3)
    assert len(bayesian_layers(bayesianize(nn.Sequential(conv, nn.ReLU(), conv), {3: vae}))) == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda net, vae: set_mode(net, "mean"), "mode: found 'mean', expected one of stoch, det, weights"),
        (lambda net, vae: DeepWeightPrior(vae, reverse="trained"), "reverse: found 'trained', expected frozen or"),
        (lambda net, vae: DeepWeightPrior(vae, bound="IWAE"), "bound: found 'IWAE', expected elbo or iwae"),
    ],
)
def test_names_that_do_not_exist(call, message, vae):
    with pytest.raises(ValueError, match=message):
        call(bayesianize(nn.Conv2d(1, 1, 3), {3: vae}), vae)


def test_a_resnet(tmp_path):
    """It trains; it is the same after it was saved and loaded, copied, and converted."""
    from torchvision.models import resnet18

    def network():
        torch.manual_seed(5)
        vaes = {k: utils.load_vae(ROOT / "data" / "fconv" / f"vae{k}x{k}") for k in (7, 3)}
        return bayesianize(resnet18(num_classes=3), vaes, kernels=64)

    net = network()
    layers = bayesian_layers(net)
    assert len(layers) == 20 and sum(isinstance(layer.prior, DeepWeightPrior) for layer in layers) == 17
    assert net.conv1.mean.stride == (2, 2) and net.conv1.mean.padding == (3, 3)
    assert sum(p.numel() for p in net.parameters()) == sum(
        2 * p.numel() if p.ndim == 4 else p.numel() for p in resnet18(num_classes=3).parameters()
    )
    x, y = torch.rand(6, 3, 64, 64), torch.arange(6) % 3
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        nll = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        (nll + 1e-6 * kl(net)).backward()
        optimizer.step()
        losses.append(nll.item())
    assert losses[-1] < losses[0]
    torch.save(net.state_dict(), tmp_path / "net.torch")
    loaded = network()
    loaded.load_state_dict(torch.load(tmp_path / "net.torch", weights_only=True))
    found = []
    for other in (net, loaded, copy.deepcopy(net)):
        torch.manual_seed(6)
        found.append(predict(other, x, 2))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert found[0].shape == (2, 6, 3) and not torch.equal(found[0][0], found[0][1])
    assert torch.isfinite(kl(net.to(torch.float64)))


def test_the_hub_with_another_utils(tmp_path):
    """A program whose own module has the name of one of the project's is told so, instead of an AttributeError."""
    (tmp_path / "utils.py").write_text("")
    code = f"import torch, utils; torch.hub.load({str(ROOT)!r}, 'vae7x7', source='local')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: utils: found ") and str(tmp_path / "utils.py") in last, done.stderr
    assert last.endswith(f"expected {ROOT / 'utils.py'}: give yours another name")


def test_the_hub(tmp_path):
    """The entries, loaded from another folder by a process that knows the project's folder alone."""
    code = f"""
import torch
load = lambda *args, **options: torch.hub.load({str(ROOT)!r}, *args, source="local", **options)
assert [load(f"vae{{k}}x{{k}}").kernel_dim for k in (7, 5, 3)] == [7, 5, 3]
assert load("deep_weight_prior", 5, kernels=8).kernels == 8
net = load("bayesianize", torch.nn.Sequential(torch.nn.Conv2d(1, 2, 7)), draw=True)
assert net[0].prior.kernel_dim == 7 and torch.isfinite(net[0].kl())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
