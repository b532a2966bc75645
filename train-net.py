"""Train a deterministic network: a source of kernels, or a baseline.

python train-net.py --data not-mnist --bs 256 --hid_dim 256 512 --l2 0.001 --model fconv --net_cfg vanilla --seed 1
"""

from models.configs import MODELS
from runs import options
from runs.errors import UserError, one_line_errors
from runs.types import ON_OFF, POSITIVE, WHOLE, number_type

SCRIPT = "train-net.py"


def parse(argv: list[str] | None = None):
    parser = options.Parser(__doc__.split("\n")[0], SCRIPT)
    options.add_network_options(parser, net_cfg="vanilla")
    add = parser.add_argument_group("regularization").add_argument
    add(
        "--l2",
        type=number_type(float, 0),
        default=0.0,
        help="weight of the sum of squares of all parameters of the conv part, added to the mean cross-entropy",
    )
    add(
        "--classifier_lamb",
        type=POSITIVE,
        help="standard deviation S of a normal prior of the classifier: adds the sum of squares of its parameters / "
        "(2 S^2 n) to the mean cross-entropy of n images; none: no such term",
    )
    add(
        "--dwp_reg",
        type=number_type(float, 0),
        default=0.0,
        help="weight in the loss of the deep weight prior's bound on -log p(weights) of all convs, in nats",
    )
    add("--dwp_samples", type=WHOLE, default=1, help="draws of z per kernel and step in the bound of dwp_reg")
    add(
        "--do",
        type=number_type(float, 0, 1),
        nargs="*",
        default=[],
        help="dropout probabilities of fconv's 'vanilla-do', one for each conv layer",
    )
    add("--ens", type=WHOLE, default=10, help="draws of the dropout in the evaluated ensemble")
    mode = parser.add_argument_group("training step")
    options.add_compile_option(mode)
    help = "1: train only the classifier and the batch norms, with frozen convs"
    mode.add_argument("--rfe", **ON_OFF, help=help)
    mode.add_argument("--fastconv", **ON_OFF, help="1: eval_freq and the log's t count steps, not epochs")
    options.add_run_options(parser)
    args = parser.parse_args(argv)

    options.check_net_cfg(args, bayesian=False)
    model = MODELS[args.model]
    convs = len(model.kernel_sizes)
    args.priors = ["vae"] * convs if args.dwp_reg else []
    options.check_network_options(args, args.priors)
    expected = convs if args.model == "fconv" and model.config(args.net_cfg).dropout else 0
    if len(args.do) != expected:
        raise UserError(
            f"--do: found {len(args.do)} probabilities, expected {expected} for {args.model} {args.net_cfg}"
        )
    return args


@one_line_errors
def main(argv: list[str] | None = None):
    args = parse(argv)
    # Imported after parsing, so that errors in arguments appear at once.
    import torch
    import torch.nn.functional as F

    import utils
    from data.augment import AUGMENTATIONS
    from models.build import build_network, conv_layers, init_network
    from models.metrics import ensemble_log_probs, scores
    from models.priors import DeepWeightPrior
    from runs.checkpoint import find_checkpoints, load_pretrained, load_run, save_tensors
    from runs.device import autocast, choose_device, compiled, seed_all
    from runs.loop import Run, Stopwatch, split_batches

    seed_all(args.seed)
    device = choose_device(args.device)
    precision = autocast(args.precision, device)
    train, test = utils.load_split(args, device)
    sources = utils.load_sources(args, device)
    net = build_network(args.model, args.net_cfg, args.hid_dim, args.model_size, args.n_classes, do=args.do).to(device)
    init_network(net, args.init_list, sources)
    if args.pretrained:
        load_pretrained(net, args.pretrained, bool(args.pretrained_classifier))
    convs = conv_layers(net)
    if args.rfe:
        for conv in convs:
            conv.requires_grad_(False)
    forward = compiled(net, device) if args.compile else net
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=args.lr)
    if args.resume and not find_checkpoints(args.continue_run):
        load_run(args.resume, net, optimizer)
    dwps = [DeepWeightPrior(source["vae"]) for source in sources] if args.dwp_reg else []
    # Sums of loss, NLL, hits and images since the last row, on the device: reading a value makes the step wait.
    totals = torch.zeros(4, device=device)
    run = Run(SCRIPT, args, device, utils.run_inputs(train, test, sources, args.pretrained))
    run.track(model=net, opt=optimizer, totals=totals)
    if run.step == 0:
        save_tensors(run.root / "init_kernels.torch", utils.shown_kernels(net.state_dict()))
    model = MODELS[args.model]
    classify, images = net, test
    if args.rfe and not (args.aug or args.do or model.batch_norm):
        # The frozen convs give an image the same features in every epoch.
        with torch.random.fork_rng([]):
            train, test = (utils.features_of(net, part, args.test_bs, args.precision) for part in (train, test))
        classify = net.classifier
        forward = compiled(classify, device) if args.compile else classify
    watch = Stopwatch()

    def squares(part: torch.nn.Module) -> torch.Tensor:
        """The sum of squares of all parameters of a part of the network."""
        return sum(p.square().sum() for p in part.parameters())

    def dwp_bound() -> torch.Tensor:
        """The deep weight prior's bound on -log p(weights) in nats, averaged over `dwp_samples` draws of z."""
        kernels = [conv.weight.flatten(0, 1).unsqueeze(1) for conv in convs]
        draws = [d.cross_entropy(w) for d, w in zip(dwps, kernels, strict=False) for _ in range(args.dwp_samples)]
        return sum(draws, torch.zeros((), device=device)) / args.dwp_samples

    def evaluate() -> dict[str, dict[str, float]]:
        """The scores of the network on the test images, and with dropout also those of an ensemble of its draws.

        Empty without test images.
        """
        if not len(test.labels):
            return {}
        net.eval()
        logits = torch.cat(utils.predict(lambda x, _: classify(x), test, args.test_bs, args.precision)).float()
        found = {"test": scores(F.log_softmax(logits, 1), test.labels)}
        net.train()
        if net.config.dropout:
            with torch.random.fork_rng([]):  # training continues with the same random numbers as without the draws
                draws = utils.predict_log_probs(net, images, "det", args.ens, args.test_bs, args.precision)
            found["draws"] = scores(ensemble_log_probs(draws), test.labels)
        return found

    @torch.no_grad()
    def log_row(t: int, lr: float) -> None:
        """Log the row `t`, with means over the images since the last row, and write the model."""
        loss, train_nll, train_acc, _ = (totals / totals[3]).tolist()
        more = {f"{name}/{score}": value for name, found in evaluate().items() for score, value in found.items()}
        row = {"loss": loss, "train_nll": train_nll, "test_nll": more.pop("test/nll", None), "train_acc": train_acc}
        row |= {"test_acc": more.pop("test/acc", None), "lr": lr, "sec": watch.lap()}
        run.log(t, **row, l2_norm=squares(net.features).item(), dwp_reg=dwp_bound().item(), **more)
        run.save_weights()
        totals.zero_()

    n, least = len(train.labels), model.least_batch
    steps = args.epochs * len(split_batches(torch.arange(n), args.bs, least))
    net.train()
    for epoch in run.epochs(args.epochs):
        lr = options.learning_rate(epoch, args.epochs, args.lr, args.decrease_from, args.milestones, args.gamma)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for index in run.batches(n, args.bs, least):
            x, y = train.batch(index)
            with precision:
                logits = forward(AUGMENTATIONS[args.aug](x) if args.aug else x)
                nll = F.cross_entropy(logits, y)
                penalties = {}
                if args.l2:
                    penalties["the l2 term"] = args.l2 * squares(net.features)
                if args.classifier_lamb:
                    # -log N(0, classifier_lamb^2) of the weights, up to a constant, per image as the cross-entropy.
                    penalties["the classifier_lamb term"] = squares(net.classifier) / (2 * args.classifier_lamb**2 * n)
                if args.dwp_reg:
                    penalties["the dwp_reg term"] = args.dwp_reg * dwp_bound()
            loss = nll + sum(penalties.values())
            run.require_finite({"the cross-entropy": nll, **penalties})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hits = (logits.argmax(1) == y).sum()
            totals += torch.stack([loss.detach() * len(y), nll.detach() * len(y), hits, torch.full_like(hits, len(y))])
            if args.fastconv and run.should_evaluate(run.step, steps):
                log_row(run.step, lr)
        if not args.fastconv:
            if run.should_evaluate(epoch, args.epochs):
                log_row(epoch, lr)
            totals.zero_()
    return run


if __name__ == "__main__":
    main()
