"""Train a deterministic network: a source of kernels, or a baseline.

python train-net.py --data not-mnist --bs 256 --hid_dim 256 512 --l2 0.001 --model fconv --net_cfg vanilla --seed 1
"""

import runs
from models.configs import KERNEL_SIZES, NET_CONFIGS

SCRIPT = "train-net.py"


def parse(argv: list[str] | None = None):
    parser = runs.Parser(__doc__.split("\n")[0])
    runs.add_network_options(parser, net_cfg="vanilla", inits=("xavier", "vae", "filters", "pretrained"))
    regularization = parser.add_argument_group("regularization")
    regularization.add_argument(
        "--l2",
        type=runs.number(float, 0),
        default=0.0,
        help="weight of the sum of squares of all parameters of the conv part, added to the mean cross-entropy",
    )
    regularization.add_argument(
        "--do",
        type=runs.number(float, 0, 1),
        nargs="*",
        default=[],
        help="dropout probabilities of 'vanilla-do', one for each conv layer",
    )
    runs.add_run_options(parser)
    args = parser.parse_args(argv)

    configs = NET_CONFIGS[args.model]
    runs.check_net_cfg(args, [name for name, config in configs.items() if not any(config.bayesian)])
    runs.check_network_options(args)
    layers = len(KERNEL_SIZES[args.model]) if configs[args.net_cfg].dropout else 0
    if len(args.do) != layers:
        raise runs.UserError(f"--do: found {len(args.do)} probabilities, expected {layers} for {args.net_cfg}")
    return args


@runs.command
def main(argv: list[str] | None = None) -> runs.Run:
    args = parse(argv)
    # After the arguments, so that a mistake in them answers at once.
    import torch
    import torch.nn.functional as F
    from tqdm import trange

    import utils
    from models.fconv import FConv

    torch.manual_seed(args.seed)
    device = utils.pick_device(args.device)
    train, test = utils.load_network_data(args, device)
    vaes = utils.load_vaes(args, device, KERNEL_SIZES[args.model])
    net = FConv(args.net_cfg, args.hid_dim, args.n_classes, args.do).to(device)
    utils.init_network(net, args, vaes)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    if args.resume:
        utils.resume(args.resume, net, optimizer)
    run = runs.Run(SCRIPT, args)
    watch = runs.Stopwatch()

    def l2_norm() -> torch.Tensor:
        return sum(p.square().sum() for p in net.features.parameters())

    @torch.no_grad()
    def evaluate() -> tuple[float, float]:
        """Mean NLL in nats per image and accuracy on the test set."""
        net.eval()
        nll, hits = torch.zeros((), device=device), torch.zeros((), device=device)
        for x, y in test.batches(args.test_bs, "test"):
            logits = net(x)
            nll += F.cross_entropy(logits, y, reduction="sum")
            hits += (logits.argmax(1) == y).sum()
        return nll.item() / len(test.labels), hits.item() / len(test.labels)

    n = len(train.labels)
    for epoch in trange(1, args.epochs + 1, desc="epochs", disable=None):
        lr = runs.learning_rate(args, epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        net.train()
        # Summed on the device: reading a value would make every step wait for it.
        loss_sum, nll_sum, hits = (torch.zeros((), device=device) for _ in range(3))
        for x, y in train.batches(args.bs, "training", shuffle=True):
            logits = net(x)
            nll = F.cross_entropy(logits, y)
            loss = nll + args.l2 * l2_norm()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(y)
            nll_sum += nll.detach() * len(y)
            hits += (logits.argmax(1) == y).sum()

        if epoch == 1 or epoch % args.eval_freq == 0 or epoch == args.epochs:
            test_nll, test_acc = evaluate()
            run.log(
                epoch,
                loss=loss_sum.item() / n,
                train_nll=nll_sum.item() / n,
                test_nll=test_nll,
                train_acc=hits.item() / n,
                test_acc=test_acc,
                lr=lr,
                sec=watch.lap(),
                l2_norm=l2_norm().item(),
                dwp_reg=0.0,  # no such term here; the column keeps the published format
            )
            run.save(model=net.state_dict(), opt=optimizer.state_dict())
    print(f"run directory: {run.root}")
    return run


if __name__ == "__main__":
    main()
