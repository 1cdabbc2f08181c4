"""python -m bench params: Table 1 for every preset, counted on the meta device."""

import torch

from config import CONFIGS
from model import InternVLA_A1
from support.flags import Parser
from support.table1 import count_parameters, not_built

PAPER = {"a1_2b": (0.94, 0.36, 0.36, 1.8), "a1_3b": (2.13, 0.44, 0.44, 3.2)}   # Table 1, in billions


def table():
    """Lines of Table 1 in billions. The paper's und column counts lm_head, its total the VAE and projections."""
    yield (f"{'config':<15}{'und':>8}{'gen':>8}{'act':>8}{'conv+proj':>11}{'VAE':>8}{'built':>9}{'not built':>11}"
           f"{'sum':>15}   paper: und gen act total")
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            rows = count_parameters(InternVLA_A1(config.model))
        absent = sum(not_built(config.model).values())
        paper = "  ".join(map(str, PAPER.get(name.removesuffix("_release"), ())))
        yield (f"{name:<15}{rows['und'] / 1e9:8.3f}{rows['gen'] / 1e9:8.3f}{rows['act'] / 1e9:8.3f}"
               f"{rows['projections'] / 1e9:11.3f}{rows['vae'] / 1e9:8.3f}{rows['total'] / 1e9:9.3f}"
               f"{absent / 1e9:11.3f}{rows['total'] + absent:15,}   {paper}".rstrip())
    for name in PAPER:
        yield f"\nnot built in {name} (nothing reads it; negative: built here, absent in the release's file)"
        for key, count in not_built(CONFIGS[name].model).items():
            yield f"  {key:<50}{count:>14,}"


def run(argv):
    Parser(prog="python -m bench params", description=__doc__).parse_args(argv)
    print("\n".join(table()))
