r"""Train a variational Bayesian network, whose KL is taken against a prior of each conv layer.

    python train-bnn.py --data mnist --data_split_seed 0 --num_examples 50 --epochs 10000 --model fconv \
        --vae_list data/fconv/vae7x7/ data/fconv/vae5x5/ --init_list vae vae --net_cfg bayes --hid_dim 32 128 \
        --prior_list vae vae --eval_freq 100
"""

import math

import runs
from models.configs import KERNEL_SIZES, NET_CONFIGS

SCRIPT = "train-bnn.py"
PRIORS = ("sn", "vae", "no")


def parse(argv: list[str] | None = None):
    whole = runs.number(int, 1)
    parser = runs.Parser(__doc__.split("\n")[0])
    runs.add_network_options(parser, net_cfg="bayes", inits=("xavier", "vae", "filters", "pretrained"))
    bayes = parser.add_argument_group("Bayesian inference")
    bayes.add_argument("--prior", choices=PRIORS, default="sn", help="prior of every Bayesian conv")
    bayes.add_argument(
        "--prior_list",
        choices=PRIORS,
        nargs="*",
        default=[],
        help="instead, one prior per conv ('no' if deterministic)",
    )
    bayes.add_argument(
        "--lamb", type=runs.number(float, 0, open_low=True), default=1.0, help="standard deviation of the prior 'sn'"
    )
    bayes.add_argument("--dwp_samples", type=whole, default=1, help="w's per kernel and step in the KL of 'vae'")
    bayes.add_argument(
        "--kl_kernels",
        type=runs.number(int, 0),
        default=0,
        help="kernels per layer drawn each step for the KL of 'vae', an unbiased estimate; 0 is all",
    )
    bayes.add_argument("--ens", type=whole, default=10, help="samples in the ensemble that is evaluated")
    bayes.add_argument("--logvarinit", type=runs.number(float, -50, 50), default=-10.0, help="initial log variance")
    runs.add_run_options(parser)
    args = parser.parse_args(argv)

    configs = {name: config for name, config in NET_CONFIGS[args.model].items() if any(config.bayesian)}
    runs.check_net_cfg(args, configs)
    bayesian = configs[args.net_cfg].bayesian
    if args.prior_list and len(args.prior_list) != len(bayesian):
        raise runs.UserError(f"--prior_list: found {len(args.prior_list)} entries, expected {len(bayesian)} convs")
    for i, prior in enumerate(args.prior_list):
        if prior != "no" and not bayesian[i]:
            raise runs.UserError(
                f"--prior_list: found {prior!r} for conv {i + 1}, expected 'no': it is deterministic in {args.net_cfg}"
            )
    runs.check_network_options(args, priors(args))
    return args


def priors(args) -> list[str]:
    """The prior of each conv layer."""
    bayesian = NET_CONFIGS[args.model][args.net_cfg].bayesian
    return args.prior_list or [args.prior if is_bayesian else "no" for is_bayesian in bayesian]


@runs.command
def main(argv: list[str] | None = None) -> runs.Run:
    args = parse(argv)
    # After the arguments, so that a mistake in them answers at once.
    import torch
    import torch.nn.functional as F
    from tqdm import trange

    import utils
    from models.bayes import kl, set_mode
    from models.fconv import FConv
    from models.priors import DeepWeightPrior, NormalPrior

    torch.manual_seed(args.seed)
    device = utils.pick_device(args.device)
    train, test = utils.load_network_data(args, device)
    vaes = utils.load_vaes(args, device, KERNEL_SIZES[args.model], priors(args))
    net = FConv(args.net_cfg, args.hid_dim, args.n_classes, log_variance=args.logvarinit).to(device)
    utils.init_network(net, args, vaes)
    for kind, vae, layer in zip(priors(args), vaes, utils.conv_layers(net), strict=True):
        if kind == "vae":
            layer.prior = DeepWeightPrior(vae, args.dwp_samples, args.kl_kernels)
        elif kind == "sn":
            layer.prior = NormalPrior(args.lamb)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    if args.resume:
        utils.resume(args.resume, net, optimizer)
    run = runs.Run(SCRIPT, args)
    watch = runs.Stopwatch()

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        """Accuracy of the mean network, of one sample and of the ensemble, whose mean NLL is in nats per image.

        The one sample is the ensemble's first.
        """
        net.eval()
        totals = torch.zeros(4, device=device)
        for x, y in test.batches(args.test_bs, "test"):
            set_mode(net, "det")
            det = net(x)
            set_mode(net, "stoch")
            samples = F.log_softmax(net.sample_logits(x, args.ens), 2)
            ensemble = samples.logsumexp(0) - math.log(args.ens)
            hits = [(logits.argmax(1) == y).sum() for logits in (det, samples[0], ensemble)]
            totals += torch.stack([F.nll_loss(ensemble, y, reduction="sum"), *hits])
        names = ("test_nll", "det_test_acc", "samp_test_acc", f"ens[{args.ens}]_test_acc")
        return dict(zip(names, (totals / len(test.labels)).tolist(), strict=True))

    n = len(train.labels)
    for epoch in trange(1, args.epochs + 1, desc="epochs", disable=None):
        lr = runs.learning_rate(args, epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        net.train()
        # Summed on the device: reading a value would make every step wait for it.
        nll_sum, kl_sum, hits, steps = *(torch.zeros((), device=device) for _ in range(3)), 0
        for x, y in train.batches(args.bs, "training", shuffle=True):
            logits = net(x)
            nll = F.cross_entropy(logits, y)
            step_kl = kl(net)
            optimizer.zero_grad()
            (n * nll + step_kl).backward()
            optimizer.step()
            nll_sum += nll.detach() * len(y)
            kl_sum += step_kl.detach()
            hits += (logits.argmax(1) == y).sum()
            steps += 1

        if epoch == 1 or epoch % args.eval_freq == 0 or epoch == args.epochs:
            tested = evaluate()
            test_nll = tested.pop("test_nll")
            train_nll, train_kl = nll_sum.item() / n, kl_sum.item() / steps
            run.log(
                epoch,
                train_nll=train_nll,
                KL=train_kl,
                train_loss=n * train_nll + train_kl,
                test_nll=test_nll,
                test_loss=test_nll + train_kl,
                train_acc=hits.item() / n,
                **tested,
                lr=lr,
                sec=watch.lap(),
            )
            run.save(model=net.state_dict(), opt=optimizer.state_dict())
    print(f"run directory: {run.root}")
    return run


if __name__ == "__main__":
    main()
