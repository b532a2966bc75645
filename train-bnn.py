r"""Train a variational Bayesian network, whose KL is taken against a prior of each conv layer.

    python train-bnn.py --data mnist --data_split_seed 0 --num_examples 50 --epochs 10000 --model fconv \
        --vae_list data/fconv/vae7x7/ data/fconv/vae5x5/ --init_list vae vae --net_cfg bayes --hid_dim 32 128 \
        --prior_list vae vae --eval_freq 100
"""

import math

import runs
from models.configs import MODELS, PRIOR_NEEDS

SCRIPT = "train-bnn.py"


def parse(argv: list[str] | None = None):
    whole, positive = runs.number(int, 1), runs.number(float, 0, open_low=True)
    parser = runs.Parser(__doc__.split("\n")[0], SCRIPT)
    runs.add_network_options(parser, net_cfg="bayes")
    bayes = parser.add_argument_group("Bayesian inference")
    bayes.add_argument("--prior", choices=tuple(PRIOR_NEEDS), default="sn", help="prior of every Bayesian conv")
    bayes.add_argument(
        "--prior_list",
        choices=tuple(PRIOR_NEEDS),
        nargs="*",
        default=[],
        help="instead, one prior per conv ('no' if deterministic)",
    )
    bayes.add_argument(
        "--classifier_prior",
        choices=("none", "sn"),
        default="none",
        help="'sn' makes the classifier's linear layers Bayesian under N(0, lamb^2)",
    )
    bayes.add_argument("--lamb", type=positive, default=1.0, help="standard deviation of the priors 'sn' and 'sn-mc'")
    bayes.add_argument("--kl_weight", type=runs.number(float, 0), default=1.0, help="factor of the KL in the objective")
    bayes.add_argument(
        "--dwp_samples", type=whole, default=1, help="w's per kernel and step in the KL of 'vae', 'flow', 'sn-mc'"
    )
    bayes.add_argument(
        "--kl_kernels",
        type=runs.number(int, 0),
        default=0,
        help="kernels per layer drawn each step for that KL, an unbiased estimate; 0 is all",
    )
    bayes.add_argument(
        "--reverse",
        choices=("frozen", "train"),
        default="frozen",
        help="the reverse model r(z|w) of 'vae': the VAE's encoder, or a copy per layer that is trained along",
    )
    bayes.add_argument(
        "--bound", choices=("elbo", "iwae"), default="elbo", help="bound of the KL of 'vae'; 'iwae' is tighter"
    )
    bayes.add_argument("--iwae_samples", type=whole, default=8, help="z's per w in the bound 'iwae'")
    bayes.add_argument("--ens", type=whole, default=10, help="samples in the ensemble that is evaluated")
    bayes.add_argument("--logvarinit", type=runs.number(float, -50, 50), default=-10.0, help="initial log variance")
    runs.add_run_options(parser)
    args = parser.parse_args(argv)

    runs.check_net_cfg(args, bayesian=True)
    config = MODELS[args.model].config(args.net_cfg)
    if args.prior_list and len(args.prior_list) != len(config.bayesian):
        raise runs.UserError(
            f"--prior_list: found {len(args.prior_list)} entries, expected {len(config.bayesian)} convs"
        )
    for i, prior in enumerate(args.prior_list):
        if prior != "no" and not config.bayesian[i]:
            raise runs.UserError(
                f"--prior_list: found {prior!r} for conv {i + 1}, expected 'no': it is deterministic in {args.net_cfg}"
            )
    if "vae" not in priors(args) and (args.reverse, args.bound) != ("frozen", "elbo"):
        option = "reverse" if args.reverse != "frozen" else "bound"
        raise runs.UserError(f"--{option}: found {getattr(args, option)} and no prior 'vae', whose KL it concerns")
    runs.check_network_options(args, priors(args))
    return args


def priors(args) -> list[str]:
    """The prior of each conv layer."""
    bayesian = MODELS[args.model].config(args.net_cfg).bayesian
    return args.prior_list or [args.prior if is_bayesian else "no" for is_bayesian in bayesian]


@runs.command
def main(argv: list[str] | None = None) -> runs.Run:
    args = parse(argv)
    # After the arguments, so that a mistake in them answers at once.
    import torch
    import torch.nn.functional as F

    import utils
    from models.bayes import BayesLayer, bayesian_layers, kl_terms, set_mode
    from models.priors import NormalPrior, reverse_models

    utils.seed_all(args.seed)
    device = utils.pick_device(args.device)
    precision = utils.autocast(args.precision, device)
    train, test = utils.load_network_data(args, device)
    sources = utils.load_sources(args, device, priors(args))
    net = utils.NETWORKS[args.model](
        args, log_variance=args.logvarinit, bayesian_classifier=args.classifier_prior == "sn"
    ).to(device)
    utils.init_network(net, args, sources)
    for layer in bayesian_layers(net.classifier):
        layer.prior = NormalPrior(args.lamb)
    conv_priors = utils.build_priors(args, priors(args), sources)
    for layer, prior in zip(utils.conv_layers(net), conv_priors, strict=True):
        if isinstance(layer, BayesLayer):
            layer.prior = prior
    reverse = torch.nn.ModuleDict(reverse_models(conv_priors))
    optimizer = torch.optim.Adam([*net.parameters(), *reverse.parameters()], lr=args.lr)
    if args.resume and not args.continue_run:
        utils.resume(args.resume, net, optimizer, reverse)
    # NLL, KL and hits of an epoch, summed on the device: reading a value would make every step wait for it.
    totals = torch.zeros(3, device=device)
    run = runs.Run(SCRIPT, args, device)
    run.track(model=net, opt=optimizer, reverse=reverse, totals=totals)
    if run.step == 0:
        runs.write_tensors(run.root / "init_kernels.torch", utils.shown_kernels(net.state_dict()))
    watch = runs.Stopwatch()

    def evaluate() -> dict[str, float]:
        """Accuracy of the mean network, of one sample and of the ensemble, whose mean NLL is in nats per image.

        The one sample is the ensemble's first.
        """

        def log_p(samples: int) -> torch.Tensor:
            """Log probabilities (samples, n, n_classes) of the test set's classes."""
            logits = utils.predict(
                lambda x, generator: net.sample_logits(x, samples, generator), test, args.test_bs, args.precision
            )
            return F.log_softmax(torch.cat(logits, 1).float(), 2)

        net.eval()
        set_mode(net, "det")
        det = log_p(1)[0]
        set_mode(net, "stoch")
        samples = log_p(args.ens)
        ensemble = samples.logsumexp(0) - math.log(args.ens)
        hits = [(p.argmax(1) == test.labels).float().mean() for p in (det, samples[0], ensemble)]
        names = ("test_nll", "det_test_acc", "samp_test_acc", f"ens[{args.ens}]_test_acc")
        return dict(zip(names, torch.stack([F.nll_loss(ensemble, test.labels), *hits]).tolist(), strict=True))

    n = len(train.labels)
    for epoch in run.epochs(args.epochs):
        lr = runs.learning_rate(args, epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        net.train()
        for index in run.batches(n, args.bs):
            x, y = train.batch(index)
            with precision:
                logits = net(utils.augment(x) if args.aug else x)
                nll = F.cross_entropy(logits, y)
                terms = kl_terms(net)
            kl = sum(terms.values())
            run.require_finite(
                **{"the data term is": nll}, **{f"the KL of {name} is": kl for name, kl in terms.items()}
            )
            optimizer.zero_grad()
            (n * nll + args.kl_weight * kl).backward()
            optimizer.step()
            totals += torch.stack([nll.detach() * len(y), kl.detach(), (logits.argmax(1) == y).sum()])

        if run.due(epoch, args.epochs):
            tested = evaluate()
            test_nll = tested.pop("test_nll")
            nll_sum, kl_sum, hits = totals.tolist()
            train_nll, train_kl = nll_sum / n, kl_sum / math.ceil(n / args.bs)
            run.log(
                epoch,
                train_nll=train_nll,
                KL=train_kl,
                train_loss=n * train_nll + args.kl_weight * train_kl,
                test_nll=test_nll,
                test_loss=test_nll + args.kl_weight * train_kl,
                train_acc=hits / n,
                **tested,
                lr=lr,
                sec=watch.lap(),
            )
            run.export()
        totals.zero_()
    return run


if __name__ == "__main__":
    main()
