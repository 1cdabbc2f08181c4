"""python -m bench COMMAND: the figures that neither train.py nor infer.py prints.

    params     Table 1: the parameters of every preset
    claims     how far variants of the model come in the embedded world (Fig. 9), and tau's density times lambda
    gradients  how hard L_act and L_gen pull on the experts that both reach
    latency    seconds of an action chunk, phase by phase, or milliseconds of a control step
    reading    training tuples a second from a dataset
    history    what the right o_{t-m} is worth to a policy that is served
    causal     the same policy shown the true, a frozen and a reversed past
    sampler    Euler's method beside Heun's and the midpoint's
    handover   the step from one chunk to the next, and success, with latency injected
    card       what a GPU gives: rates, agreement, chunks, training under 24 GiB, a control loop

`python -m bench COMMAND --help` shows the flags of one."""

from support.entry import command   # first: Ctrl-C during the imports is one line, too

import importlib

COMMANDS = ("params", "claims", "gradients", "latency", "reading", "history", "causal", "sampler", "handover", "card")


def run(argv):
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(__doc__.strip())
    elif name in COMMANDS:   # it alone is imported: history needs packages that the others do not
        importlib.import_module(f"bench.{name}").run(argv[1:])
    else:
        raise ValueError(f"unknown command {name}: choose {', '.join(COMMANDS)}; --help explains them")


if __name__ == "__main__":
    command("bench", run)
