"""Try to disturb a policy server: infer.py --serve in a process of its own, on loopback, bounded in count and time.

    python tests/serving_load.py --checkpoint runs/conveyor     a few minutes on two cores

    alone      one session asks
    load       seven sessions ask at once, as often each, while one more client is hostile all the while
    mutated    messages with bytes changed, cut out and repeated; between them another session asks

All sessions send the same observations, so each must get the chunks of "alone", to the last bit. The hostile client
takes turns: junk; half a handshake and half a message, left open; 1 GB announced; requests whose answers it does not
read; and a process that is killed in the middle of a message."""

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving_client import ask, begin, packb, raw, sent   # noqa: E402

HANDSHAKE = (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
             b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n")
CHILD = ("import socket, sys, time; wire = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); "
         "wire.sendall(bytes.fromhex(sys.argv[2])); print(flush=True); time.sleep(60)")
KINDS = ("junk", "half a handshake", "half a message", "1 GB announced", "never reading", "killed")


def hostile(kind, port, dice, left):
    """One connection of somebody who means no good. left: keeps those that stay open."""
    message = packb(sent(seed=1))
    begun = b"\x82\xff" + len(message).to_bytes(8, "big") + bytes(4)   # of a frame whose mask is 0
    half = begun + message[:dice.randrange(len(message))]
    if kind == "killed":
        with subprocess.Popen([sys.executable, "-S", "-c", CHILD, str(port), (HANDSHAKE + half).hex()],
                              stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            return child.kill()
    with contextlib.suppress(OSError):
        wire = socket.create_connection(("127.0.0.1", port), 1)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")   # it will be closed by a reset
        if kind.startswith("half"):
            left.append(wire)
        wire.sendall(HANDSHAKE[:30] if kind == "half a handshake" else HANDSHAKE)
        time.sleep(0.02)
        wire.sendall({"junk": dice.randbytes(dice.randrange(1, 2000)), "half a message": half, "half a handshake": b"",
                      "1 GB announced": begun[:2] + (1 << 30).to_bytes(8, "big") + bytes(4) + bytes(1 << 20),
                      "never reading": 8 * (begun + message)}[kind])
        time.sleep(0.02)


def mutated(message, dice):
    message = bytearray(message)
    for _ in range(dice.randint(1, 4)):
        at, n = dice.choice((dice.randrange(300), dice.randrange(len(message)))), dice.choice((0, 1, 40))
        message[at:at + n] = dice.choice((dice.randbytes(n), dice.randbytes(1), message[:dice.randint(1, 60)]))
    return bytes(message)


def memory(made):   # MiB
    return int(Path(f"/proc/{made.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def times(rows):
    """Milliseconds of requests, in words."""
    whole, model, wait = (np.array([row[i] for row in rows]) for i in (1, 2, 3))
    parts = {"a request": whole, "the model": model, "waiting": wait, "the rest": whole - model - wait}
    return ", ".join("{} {:.1f}/{:.1f}".format(name, *np.percentile(of, (50, 99))) for name, of in parts.items())


def load(made, port, requests, dice):
    """Seven sessions and the hostile client -> (rows, errors, tries of each kind, MiB)."""
    rows, wrong, tries, left, used = [], [], Counter(), deque(maxlen=8), [memory(made)]
    with ThreadPoolExecutor(7) as pool:
        clients = [pool.submit(ask, port, requests, rows, wrong) for _ in range(7)]
        while not all(each.done() for each in clients):
            kind = KINDS[tries.total() % len(KINDS)]
            tries[kind] += 1
            hostile(kind, port, dice, left)
            used.append(memory(made))
    return rows, wrong, tries, used


def mutations(port, messages, requests, dice):
    """-> (answers of each kind, rows of the other session, its errors)."""
    forms = [sent(), *map(sent, ("aloha", "libero", "droid")), sent(past=sent(), frame=1, reset=False), sent()]
    whole, answers, rows, wrong, (wire, _) = [*map(packb, forms)], Counter(), [], [], raw(port)

    def between():
        for _ in range(messages // requests):
            wire.send(mutated(dice.choice(whole), dice))
            answer = wire.recv(20)
            fault = isinstance(answer, str) and ("fault of the server" in answer or len(answer.splitlines()) != 1)
            answers["planned" if isinstance(answer, bytes) else "faults" if fault else "refused"] += 1
    ask(port, requests, rows, wrong, between)
    wire.close()
    return answers, rows, wrong


def main(argv=None):
    """-> {what: number} of all that shall be 0, and `grown`, in MiB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="of a robot with three cameras and six state dimensions")
    parser.add_argument("--requests", type=int, default=200, help="of each session")
    parser.add_argument("--mutated", type=int, default=10_000, help="messages")
    args, dice, alone, wrong, began = parser.parse_args(argv), random.Random(0), [], [], time.time()
    with tempfile.TemporaryFile("w+") as errors:
        made, port = begin(args.checkpoint, errors, "--idle_timeout", 10, "--max_sessions", 32)
        try:
            ask(port, args.requests, alone, wrong)
            assert not wrong, wrong
            print(f"alone    {len(alone)} requests; ms p50/p99: {times(alone)}", flush=True)
            rows, wrong, tries, used = load(made, port, args.requests, dice)
            middle = len(used) // 2
            print(f"load     {len(rows)} requests, {len(wrong)} errors; ms p50/p99: {times(rows)}")
            print(f"hostile  {tries.total()} times: {', '.join(f'{n} {kind}' for kind, n in tries.items())}")
            print(f"memory   MiB: {used[0]:.0f} before, {used[middle]:.0f} in the middle, {used[-1]:.0f} at the end, "
                  f"{max(used):.0f} at most", flush=True)
            answers, others, more = mutations(port, args.mutated, args.requests, dice)
            differ = sum(row[-1] != alone[row[0]][-1] for row in rows + others)
            print(f"mutated  {answers.total()} messages: {', '.join(f'{n} {kind}' for kind, n in answers.items())}; "
                  f"the other session: {len(others)} requests, {len(more)} errors", *(wrong + more)[:5])
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60)
            made.send_signal(signal.SIGTERM)
            code = made.wait(20)
        finally:
            made.kill()
            made.wait()
        errors.seek(0)
        traces = errors.read().count("Traceback")
    print(f"server   {traces} tracebacks, {differ} chunks not as alone, ended with {code}; {time.time() - began:.0f} s")
    return {"errors": len(wrong + more), "other chunks": differ, "faults": answers["faults"], "tracebacks": traces,
            "code": code, "missing": 9 * args.requests - len(alone + rows + others), "grown": used[-1] - used[middle]}


if __name__ == "__main__":
    found = main()
    sys.exit(found.pop("grown") > 20 or any(found.values()))
