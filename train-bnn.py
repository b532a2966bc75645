r"""Train a Bayesian network by variational inference, with a prior for each conv layer.

    python train-bnn.py --data mnist --data_split_seed 0 --num_examples 50 --epochs 10000 --model fconv \
        --vae_list data/fconv/scaled/vae7x7/ data/fconv/scaled/vae5x5/ --init_list vae vae --net_cfg bayes \
        --hid_dim 32 128 --prior_list vae vae --eval_freq 100
"""

from models.configs import MODELS, PRIORS
from runs import options
from runs.errors import UserError, one_line_errors, user_error
from runs.types import POSITIVE, WHOLE, number_type

SCRIPT = "train-bnn.py"


def parse(argv: list[str] | None = None):
    parser = options.Parser(__doc__.split("\n")[0], SCRIPT)
    options.add_network_options(parser, net_cfg="bayes")
    add = parser.add_argument_group("Bayesian inference").add_argument
    add("--prior", choices=tuple(PRIORS), default="sn", help="prior of every Bayesian conv")
    add(
        "--prior_list",
        choices=tuple(PRIORS),
        nargs="*",
        default=[],
        help="prior of each conv, overrides prior; 'no' for a deterministic conv",
    )
    add(
        "--classifier_prior",
        choices=("none", "sn"),
        default="none",
        help="'sn' makes the classifier's linear layers Bayesian under N(0, classifier_lamb^2)",
    )
    add("--lamb", type=POSITIVE, default=1.0, help="standard deviation of the priors 'sn' and 'sn-mc'")
    add("--classifier_lamb", type=POSITIVE, help="standard deviation of the classifier's prior; none: lamb")
    help = "factor of the KL in the objective; for 1 and few images take VAEs as those of data/fconv/scaled"
    add("--kl_weight", type=number_type(float, 0), default=1.0, help=help)
    add("--dwp_samples", type=WHOLE, default=1, help="draws of w per kernel and step, for 'vae', 'flow', 'sn-mc'")
    add(
        "--kl_kernels",
        type=number_type(int, 0),
        default=0,
        help="kernels drawn per layer and step for an unbiased KL of 'vae', 'flow', 'sn-mc'; 0: all",
    )
    add(
        "--reverse",
        choices=("frozen", "train"),
        default="frozen",
        help="reverse model r(z|w) of 'vae': the frozen encoder, or a trained copy of the encoder per layer",
    )
    add("--bound", choices=("elbo", "iwae"), default="elbo", help="bound of the KL of 'vae'; 'iwae' is tighter")
    add("--iwae_samples", type=WHOLE, default=8, help="draws of z per w in the bound 'iwae'")
    add("--ens", type=WHOLE, default=10, help="samples of the network in the evaluated ensemble")
    add("--draws", type=WHOLE, help="draws of the weights in the evaluated ensemble 'draws'; none: ens")
    add("--logvarinit", type=number_type(float, -50, 50), default=-10.0, help="initial log variance")
    add(
        "--lr_var",
        type=POSITIVE,
        help="initial learning rate of the log variances (of w_alpha in 'mtrunca'); none: lr. Adam moves a parameter "
        "by at most about steps * lr_var / 2, because the rate falls to 0. This has to exceed the distance from "
        "logvarinit to the final log variance, often 5 to 9",
    )
    options.add_run_options(parser)
    args = parser.parse_args(argv)

    options.check_net_cfg(args, bayesian=True)
    bayesian = MODELS[args.model].config(args.net_cfg).bayesian
    args.priors = args.prior_list or [args.prior if is_bayesian else "no" for is_bayesian in bayesian]
    if len(args.priors) != len(bayesian):
        raise UserError(f"--prior_list: found {len(args.priors)} entries, expected {len(bayesian)} convs")
    for i, (prior, is_bayesian) in enumerate(zip(args.priors, bayesian, strict=True), 1):
        if prior != "no" and not is_bayesian:
            raise UserError(
                f"--prior_list: found {prior!r} for conv {i}, expected 'no' (deterministic in {args.net_cfg})"
            )
    if "vae" not in args.priors and (args.reverse, args.bound) != ("frozen", "elbo"):
        option = "reverse" if args.reverse != "frozen" else "bound"
        raise UserError(f"--{option}: found {getattr(args, option)} and no prior 'vae', expected one for a conv")
    options.check_network_options(args, args.priors)
    return args


@one_line_errors
def main(argv: list[str] | None = None):
    args = parse(argv)
    # Imported after parsing, so that errors in arguments appear at once.
    import torch
    import torch.nn.functional as F

    import utils
    from data.augment import AUGMENTATIONS
    from models.bayes import kl_terms, relative_deviations, variance_parameters
    from models.build import build_network, init_network, set_priors
    from models.metrics import ensemble_log_probs, scores
    from runs.checkpoint import find_checkpoints, load_pretrained, load_run, save_tensors
    from runs.device import autocast, choose_device, seed_all
    from runs.loop import Run, Stopwatch

    seed_all(args.seed)
    device = choose_device(args.device)
    precision = autocast(args.precision, device)
    train, test = utils.load_split(args, device)
    sources = utils.load_sources(args, device)
    bayes = {"log_variance": args.logvarinit, "bayesian_classifier": args.classifier_prior == "sn"}
    net = build_network(args.model, args.net_cfg, args.hid_dim, args.model_size, args.n_classes, **bayes).to(device)
    init_network(net, args.init_list, sources)
    if args.pretrained:
        load_pretrained(net, args.pretrained, bool(args.pretrained_classifier))
    with user_error("--prior, --prior_list:"):
        set_priors(net, args.priors, sources, vars(args))
    groups, rates = [{"params": list(net.parameters())}], [args.lr]
    if args.lr_var:
        variances = variance_parameters(net)
        others = [p for p in net.parameters() if all(p is not v for v in variances)]
        groups, rates = [{"params": others}, {"params": variances}], [args.lr, args.lr_var]
    optimizer = torch.optim.Adam(groups, lr=args.lr)
    if args.resume and not find_checkpoints(args.continue_run):
        load_run(args.resume, net, optimizer)
    # NLL, KL and hits, summed over an epoch's images on the device: reading a value would make every step wait for it.
    totals = torch.zeros(3, device=device)
    run = Run(SCRIPT, args, device, utils.run_inputs(train, test, sources, args.pretrained))
    run.track(model=net, opt=optimizer, totals=totals)
    if run.step == 0:
        save_tensors(run.root / "init_kernels.torch", utils.shown_kernels(net.state_dict()))
    watch = Stopwatch()

    def evaluate() -> tuple[dict[str, float], dict[str, float]]:
        """NLL of the ensemble in nats per image and the accuracies; then the scores that the printed table omits.

        Without test images there are only the deviations of the weights.
        """
        net.eval()
        deviations = {name: value.item() for name, value in relative_deviations(net).items()}
        if not len(test.labels):
            return {}, deviations
        settings = (args.test_bs, args.precision, args.seed)
        mean = utils.predict_log_probs(net, test, "det", 1, *settings)[0]
        samples = utils.predict_log_probs(net, test, "stoch", args.ens, *settings)
        with torch.random.fork_rng([]):  # training continues with the same random numbers as without the draws
            draws = utils.predict_log_probs(net, test, "weights", args.draws or args.ens, *settings)
        first = (samples[0].argmax(1) == test.labels).float().mean().item()
        found = {"det": mean, "ensemble": ensemble_log_probs(samples), "draws": ensemble_log_probs(draws)}
        found = {name: scores(p, test.labels) for name, p in found.items()}
        accs = {"det_test_acc": found["det"].pop("acc"), "samp_test_acc": first}
        accs[f"ens[{args.ens}]_test_acc"] = found["ensemble"].pop("acc")
        more = {f"{name}/{score}": value for name, row in found.items() for score, value in row.items()}
        return {"test_nll": more.pop("ensemble/nll"), **accs}, more | deviations

    n = len(train.labels)
    for epoch in run.epochs(args.epochs):
        schedule = options.learning_rate(epoch, args.epochs, 1.0, args.decrease_from, args.milestones, args.gamma)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule
        net.train()
        for index in run.batches(n, args.bs, MODELS[args.model].least_batch):
            x, y = train.batch(index)
            with precision:
                logits = net(AUGMENTATIONS[args.aug](x) if args.aug else x)
                nll = F.cross_entropy(logits, y)
                terms = {f"the KL of {name}": term for name, term in kl_terms(net).items()}
            kl = sum(terms.values())
            run.require_finite({"the cross-entropy": nll, **terms})
            optimizer.zero_grad()
            (n * nll + args.kl_weight * kl).backward()
            optimizer.step()
            hits = (logits.argmax(1) == y).sum()
            totals += torch.stack([nll.detach() * len(y), kl.detach() * len(y), hits])

        if run.should_evaluate(epoch, args.epochs):
            test_row, more = evaluate()
            train_nll, train_kl, train_acc = (total / n for total in totals.tolist())
            penalty = args.kl_weight * train_kl
            row = {"train_nll": train_nll, "KL": train_kl, "train_loss": n * train_nll + penalty}
            test_nll = test_row.pop("test_nll", None)
            test_loss = None if test_nll is None else n * test_nll + penalty
            row |= {"test_nll": test_nll, "test_loss": test_loss, "train_acc": train_acc}
            run.log(epoch, **row, **test_row, lr=args.lr * schedule, sec=watch.lap(), **more)
            run.save_weights()
        totals.zero_()
    return run


if __name__ == "__main__":
    main()
