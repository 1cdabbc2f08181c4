"""python -m bench gradients: how hard L_act and L_gen pull on the experts that both reach, before training and after.

The ratio of the two norms is the lambda at which both pull alike (docs/conveyor.md, "Tau and lambda"). Gradients are of
held-out windows. Step 0 is the network as training begins it."""

import statistics

import torch

from bench.saving import begin, save
from data import open_corpus
from model import InternVLA_A1
from support.files import must
from support.flags import COUNT, Parser, value
from support.inference.policy import Policy
from support.training.validation import held_out_batches
from worlds import conveyor

EXPERTS = ("und", "gen")   # the action expert is reached by L_act alone


def pulls(model, batches):
    """{expert: {"L_act", "L_gen": norm of the loss's gradient, "cosine": between the two}}, medians over batches."""
    shared = {expert: [p for name, p in model.named_parameters() if expert in name.split(".")] for expert in EXPERTS}
    found = {expert: [] for expert in EXPERTS}
    for batch, eps, tau, _ in batches:
        losses = model(batch, eps, tau)
        means = losses.act_sum / losses.act_count, losses.gen_sum / losses.gen_count
        for expert, parameters in shared.items():
            grads = (torch.autograd.grad(mean, parameters, retain_graph=True, materialize_grads=True) for mean in means)
            act, gen = (torch.cat([g.flatten() for g in each]) for each in grads)
            found[expert].append([float(x) for x in (act.norm(), gen.norm(), torch.cosine_similarity(act, gen, dim=0))])
    return {expert: dict(zip(("L_act", "L_gen", "cosine"), map(statistics.median, zip(*rows))))
            for expert, rows in found.items()}


def run(argv):
    parser = Parser(prog="python -m bench gradients", description=__doc__)
    parser.add_argument("--checkpoint", required=True, nargs="+", help="runs of the preset conveyor, or checkpoints")
    parser.add_argument("--data", default="data/conveyor", help="whose held-out episodes are taken")
    parser.add_argument("--windows", type=value(int, COUNT), default=512, help="of them at most, 64 a batch")
    args, path, report = begin(parser, argv, "gradients.json")
    policies = [Policy.load(one, engine="plain") for one in args.checkpoint]
    must(all(policy.config.model.gen_expert for policy in policies), "--checkpoint: one has no generation expert")
    conveyor.prepare(args.data)
    corpus = open_corpus(args.data, policies[0].config.data.m, full=True)
    report |= {"world": conveyor.version(), "windows": args.windows, "rows": [], "finished": False}
    print("| density of tau | seed | step | expert | L_act | L_gen | L_act / L_gen | cosine |",
          "|---|---|---|---|---|---|---|---|", sep="\n")
    for policy in policies:
        config, about = policy.config, {"density": policy.config.model.tau_density, "seed": policy.config.train.seed}
        torch.manual_seed(about["seed"])
        for step, model in ((0, InternVLA_A1(config.model)), (int(policy.origin.name[5:]), policy.model)):
            batches = held_out_batches(config, policy.stats, corpus.held_out, corpus.held_out_windows, args.windows)
            for expert, row in pulls(model.requires_grad_(True), batches).items():
                report["rows"].append(about | {"step": step, "expert": expert} | row)
                cells = [*about.values(), step, expert, f"{row['L_act']:.4f}", f"{row['L_gen']:.4f}",
                         f"{row['L_act'] / row['L_gen']:.2f}", f"{row['cosine']:+.2f}"]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
        save(path, report)
    save(path, report | {"finished": True})
