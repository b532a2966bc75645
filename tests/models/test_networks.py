"""The networks: names and shapes of the parameters, pixels that no logit depends on, several samples of the logits."""

import math

import pytest
import torch
from scipy import stats

from models.bayes import set_mode
from models.build import build_network
from models.configs import MODELS
from models.fconv import FConv

PUBLISHED_NAMES = {
    ("fconv", "bayes"): ["features.conv1.mean.weight", "features.conv2.var.weight", "classifier.weight"],
    ("fconv", "bayes-mtrunca"): ["features.conv1.w_alpha", "features.conv2.mean.bias"],
    ("cifarnet", "bayes1100"): ["features.conv2.var.weight", "features.conv3.weight", "features.bn4.running_var"],
    ("cifarnet", "vanilla"): ["features.bn1.weight", "classifier.fc1.weight", "classifier.bn1.bias"],
    ("cifarnetnew", "bayes100"): ["features.conv1.var.weight", "features.conv3.bias", "classifier.linear.weight"],
    ("cifarnetnew", "vanilla-nofc"): ["features.conv1.weight", "classifier.linear.bias"],
}


@pytest.mark.parametrize("model, net_cfg", PUBLISHED_NAMES)
def test_parameter_names_and_shapes(script, model, net_cfg):
    name = "train-net.py" if net_cfg.startswith("vanilla") else "train-bnn.py"
    args = script(name).parse(["--model", model, "--net_cfg", net_cfg])
    state = build_network(model, net_cfg, args.hid_dim, args.model_size, args.n_classes).state_dict()
    assert set(PUBLISHED_NAMES[model, net_cfg]) <= state.keys()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if model == "cifarnet":
        assert shapes["features.conv4.weight"] == (512, 256, 5, 5) and shapes["classifier.fc1.weight"] == (512, 512)
    if net_cfg == "vanilla-nofc":
        assert shapes["classifier.linear.weight"] == (10, 6400) and not any("fc1" in name for name in shapes)


def test_dropout_of_cifarnetnew():
    net = build_network("cifarnetnew", "vanilla-do", model_size=0.1)
    layers = [(name, getattr(layer, "p", None)) for name, layer in net.classifier.named_children()]
    assert layers == [("do1", 0.5), ("fc1", None), ("relu1", None), ("do2", 0.2), ("linear", None)]


@pytest.mark.parametrize("model", MODELS)
def test_the_pixels_cut_off_are_those_without_a_gradient(model):
    net = build_network(model, "vanilla", [3, 4, 5][: len(MODELS[model].kernel_sizes)], 0.02).double()
    x = torch.rand(64, *MODELS[model].image_shape, dtype=torch.float64, requires_grad=True)
    whole = net.classifier(net.features(x).flatten(1))
    parameters = list(net.parameters())
    weights = torch.randn_like(whole)
    image_gradient, *gradients = torch.autograd.grad((whole * weights).sum(), [x, *parameters])
    for axis in (2, 3):
        used = image_gradient.abs().transpose(0, axis).flatten(1).sum(1).nonzero()
        assert used.max() + 1 == net.used_side
    torch.testing.assert_close(net(x), whole)
    torch.testing.assert_close(torch.autograd.grad((net(x) * weights).sum(), parameters), tuple(gradients))


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 27, 27), (3, 28, 28)])
def test_images_of_another_shape(shape):
    """The corner of a larger image would have the size that a network needs."""
    net = build_network("fconv", "vanilla", [2, 3], 1.0)
    for call in (net, net.extract, lambda x: net.sample_logits(x, 2)):
        with pytest.raises(ValueError, match=r"x: found images of \(., .., ..\), expected \(1, 28, 28\)"):
            call(torch.zeros(2, *shape))


def test_sample_logits_has_the_distribution_of_single_calls():
    torch.manual_seed(0)
    net = FConv("bayes", (4, 6), log_variance=-3.0).eval()
    x, n = torch.rand(3, 1, 28, 28), 4000
    with torch.no_grad():
        together, single = net.sample_logits(x, n), torch.stack([net(x) for _ in range(n)])
        spread = single.std(0)
        assert (spread > 0.01).all()
        assert ((together.mean(0) - single.mean(0)).abs() < 5 * spread * math.sqrt(2 / n)).all()
        assert ((together.var(0) / single.var(0) - 1).abs() < 10 / math.sqrt(n)).all()
        for image in range(3):
            assert stats.ks_2samp(together[:, image, 0].numpy(), single[:, image, 0].numpy()).pvalue > 1e-4
        set_mode(net, "det")
        torch.testing.assert_close(net.sample_logits(x, 2)[1], net(x))
