"""python -m bench gradients: how hard L_act and L_gen pull on the experts that both reach, before training and after.

The ratio of the two norms is the lambda at which both pull alike (docs/conveyor.md, "Tau and lambda"). Gradients are of
held-out windows. Step 0 is the network as training begins it."""

import statistics
from pathlib import Path

import torch

from bench.saving import place, save
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
    found = {expert: {"L_act": [], "L_gen": [], "cosine": []} for expert in EXPERTS}
    for batch, eps, tau, _ in batches:
        losses = model(batch, eps, tau)
        means = {"L_act": losses.act_sum / losses.act_count, "L_gen": losses.gen_sum / losses.gen_count}
        for expert, parameters in shared.items():
            each = {}
            for name, mean in means.items():
                grads = torch.autograd.grad(mean, parameters, retain_graph=True, materialize_grads=True)
                each[name] = torch.cat([g.flatten() for g in grads])
                found[expert][name].append(float(each[name].norm()))
            found[expert]["cosine"].append(float(torch.cosine_similarity(*each.values(), dim=0)))
    return {expert: {key: statistics.median(values) for key, values in row.items()} for expert, row in found.items()}


def run(argv):
    parser = Parser(prog="python -m bench gradients", description=__doc__)
    parser.add_argument("--checkpoint", required=True, nargs="+",
                        help="runs of train.py --config conveyor, or checkpoints")
    parser.add_argument("--data", default="data/conveyor", help="whose held-out episodes are taken")
    parser.add_argument("--windows", type=value(int, COUNT), default=512, help="of them at most, 64 a batch")
    parser.add_argument("--json", default="gradients.json", help="file name under bench/results")
    parser.add_argument("--force", action="store_true", help="write over a finished result")
    args = parser.parse_args(argv)
    path, policies = place(args.json, args.force), [Policy.load(one, engine="plain") for one in args.checkpoint]
    must(all(policy.config.model.gen_expert for policy in policies), "--checkpoint: one has no generation expert")
    conveyor.prepare(Path(args.data))
    corpus = open_corpus(args.data, policies[0].config.data.m, full=True)
    networks = {}   # of step 0 there is one for each density and seed, however many checkpoints began with it
    for policy in policies:
        about = policy.config.model.tau_density, policy.config.train.seed
        networks |= {(*about, 0): (policy, None), (*about, int(policy.origin.name[5:])): (policy, policy.model)}
    report = {"command": "python -m bench gradients " + " ".join(argv), "torch": torch.__version__,
              "world": conveyor.version(), "windows": args.windows, "rows": [], "finished": False}
    print("| density of tau | seed | step | expert | L_act | L_gen | L_act / L_gen | cosine |",
          "|---|---|---|---|---|---|---|---|", sep="\n")
    for (density, seed, step), (policy, model) in sorted(networks.items(), key=lambda item: item[0]):
        if model is None:
            torch.manual_seed(seed)
            model = InternVLA_A1(policy.config.model)
        batches = held_out_batches(policy.config, policy.stats, corpus.held_out, corpus.held_out_windows, args.windows)
        for expert, row in pulls(model.requires_grad_(True), batches).items():
            report["rows"].append({"density": density, "seed": seed, "step": step, "expert": expert, **row})
            print(f"| {density} | {seed} | {step} | {expert} | {row['L_act']:.4f} | {row['L_gen']:.4f} | "
                  f"{row['L_act'] / row['L_gen']:.2f} | {row['cosine']:+.2f} |", flush=True)
        save(path, report)
    save(path, report | {"finished": True})
