"""Learn from a folder of images with a Bayesian resnet18 under the deep weight prior.

    python examples/own_network.py my_images          a folder as under "Your images" in README.md

Writes own_network.torch, the network's state dict.
"""

import argparse
import sys
from pathlib import Path

import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils
from data.images import class_names
from models.bayes import bayesianize, kl, predict, variance_parameters

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("images", help="a folder of images")
folder = Path(parser.parse_args().images)
if not folder.is_dir():
    parser.error(f"images {folder}: found no such folder")

SIDE, STEPS, KL_WEIGHT = 64, 300, 1e-6  # with fewer steps the variances stay as they are
torch.manual_seed(0)
try:
    train, test = utils.load_data(str(folder), (3, SIDE, SIDE))  # without test/ a fifth of each class is the test part
except ValueError as error:
    parser.error(str(error).replace("--data", "images", 1))
classes, n = class_names(folder), len(train.labels)

vaes = {k: utils.load_vae(Path(utils.__file__).parent / "data" / "fconv" / f"vae{k}x{k}") for k in (7, 5, 3)}
net = bayesianize(torchvision.models.resnet18(num_classes=len(classes)), vaes, kernels=256, draw=True)
variances = variance_parameters(net)
means = [p for p in net.parameters() if all(p is not v for v in variances)]
optimizer = torch.optim.Adam([{"params": means, "lr": 1e-3}, {"params": variances, "lr": 0.05}])

batches = 1 + (n - 1) // 32
for epoch in range(max(20, -(-STEPS // batches))):
    net.train()
    for x, y in map(train.batch, torch.randperm(n).chunk(batches)):
        loss = n * torch.nn.functional.cross_entropy(net(x), y) + KL_WEIGHT * kl(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.1f}")

if len(test.labels):
    x, y = test.batch(torch.arange(len(test.labels)))
    probabilities = predict(net, x, samples=20).mean(0)
    for p, label in zip(probabilities, y, strict=True):
        print(f"{classes[label]}: {', '.join(f'{c} {q:.2f}' for c, q in zip(classes, p, strict=True))}")
    print(f"test accuracy {(probabilities.argmax(1) == y).float().mean():.2f} on {len(y)} images")
torch.save(net.state_dict(), "own_network.torch")
