"""infer.py --serve: a policy for robots and simulators in other processes, in the protocol of openpi's clients or
of XPolicyLab's (xpolicylab.py).

The event loop only moves bytes. What takes time is done by one thread, in the order in which it came: pings are
answered during a chunk, and a request waits for at most one chunk of each other session, some of them in one batch."""

import asyncio
import hmac
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial

import numpy as np

from config import VIEWS
from support import VERSION, checkpoint
from support.files import must, read_text
from support.flags import COUNT, value
from support.inference import handover, protocol
from support.inference.observation_keys import FORMS, Reader, find_keys
from support.inference.policy import Wanted
from support.inference.sessions import RULES, TOLERANCE, Session
from support.inference.xpolicylab import EXECUTED, Trials

LARGEST = 64 << 20          # bytes of one observation
ENDING, SENDING = 2, 20     # seconds for a client to say goodbye, and to take an answer
DONE, GOING, LATER = 1000, 1001, 1013   # websocket's codes of closing: as agreed, going away, try again later


def add_flags(parser):
    parser.add_argument("--serve", action="store_true", help="answer clients: docs/serving.md, docs/robotwin.md")
    for flag, about, more in (
            ("--host", "another one than this machine needs --api_key or --no_auth", {"default": "127.0.0.1"}),
            ("--port", "0: a free one", {"type": value(int, {"at_most": 65535}), "default": 8000}),
            ("--api_key", "what a client must send, or @FILE that holds it", {}),
            ("--no_auth", "whoever reaches the port may use it", {"action": "store_true"}),
            ("--keys", f"{', '.join(FORMS)} or FILE.json: a client's form (default: as it comes)", {}),
            ("--mask_missing", "go on where a camera is missing", {"action": "store_true"}),
            ("--fps", "the client's frames a second, a multiple of the checkpoint's (default: as the checkpoint)",
             {"type": value(float, {"above": 0})}),
            ("--history", "what stands for o_{t-m}", {"choices": RULES, "default": RULES[0]}),
            ("--protocol", "whose clients", {"choices": ("openpi", "xpolicylab"), "default": "openpi"}),
            ("--execute_steps", f"with xpolicylab: actions that are sent of a chunk (default: {EXECUTED}, or all)",
             {"type": value(int, COUNT)}),
            ("--gripper_threshold", "with xpolicylab: a gripper from here on is commanded 1, else 0 (0: as planned)",
             {"type": value(float, {"at_least": 0}), "default": 0.5}),
            ("--max_sessions", "clients at a time", {"type": value(int, COUNT), "default": 8}),
            ("--batch_sessions", "clients whose chunks may be one batch", {"type": value(int, COUNT), "default": 1}),
            ("--idle_timeout", "seconds of silence", {"type": value(float, {"above": 0}), "default": 600.0})):
        parser.add_argument(flag, help=f"with --serve: {about}", **more)


def check(args):
    """Refuse what cannot be served, before anything is loaded. Leaves args.key (bytes, or None), args.form (Keys, or
    None) and args.listener, the socket of the address, which does not listen yet."""
    protocol.packages()
    args.form, key = find_keys(args.keys), args.api_key
    if key is not None:   # as the header of a request can carry it
        must(not args.no_auth, "--api_key asks for a key and --no_auth for none: choose one")
        file = key if key.startswith("@") else ""
        key = read_text(key[1:]).strip() if file else key
        must(key.isascii() and key.isprintable() and key.split() == [key],
             f"--api_key {file or 'KEY'}: a key is one word of ASCII letters, digits and signs")
    args.key = key and key.encode()
    try:
        family, kind, _, _, address = socket.getaddrinfo(args.host, args.port, type=socket.SOCK_STREAM)[0]
        must(key or args.no_auth or ipaddress.ip_address(address[0]).is_loopback,
             f"--host {args.host} lets other machines use the policy: give --api_key @FILE, or --no_auth")
        args.listener = socket.socket(family, kind)
        args.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        args.listener.bind(address)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host {args.host} --port {args.port}: {getattr(error, 'strerror', None) or error}; give "
                         "another address, or end what has it") from error


def serve(policy, args):
    """Until SIGTERM, or Ctrl-C, which raises KeyboardInterrupt. args: as `check` leaves them."""
    if asyncio.run(Server(policy, args).run((signal.SIGTERM, signal.SIGINT))) == signal.SIGINT:
        raise KeyboardInterrupt
    print("stopped", flush=True)


def held(stats, fps):
    """--fps -> frames of the client for which each action is held, 1 without the flag."""
    fps = fps or stats.fps
    hold = round(fps / stats.fps)
    must(hold and abs(fps / (hold * stats.fps) - 1) < 0.01, f"--fps {fps:g}: the checkpoint has {stats.fps:g} frames a "
         "second, and each action is held for a whole number of the client's: give a multiple of that")
    return hold


def metadata(policy, args):
    """What a client must know. Numbers are in the units of the training data, and frames the client's."""
    config, stats, origin, hold = policy.config, policy.stats, policy.origin, held(policy.stats, args.fps)
    return {
        "robot": stats.robot, "cameras": list(stats.cameras() or VIEWS), "inputs": list(stats.inputs),
        "state_dim": len(stats.state_mean), "action_dim": len(stats.action_mean),
        "action_names": list(stats.action_names), "action_mode": stats.action_mode,
        "action_kinds": list(stats.kinds or ["position"] * len(stats.action_mean)), "units": "of the training data",
        "chunk": hold * config.model.chunk, "fps": hold * float(stats.fps), "m": hold * config.data.m,
        "euler_steps": policy.euler_steps or config.model.euler_steps, "image_size": config.model.view_size,
        "history": args.history, "history_tolerance": hold * TOLERANCE, "mask_missing": args.mask_missing,
        "handovers": list(handover.possible(policy)),
        "keys": {form.name: asdict(form) for form in ([args.form] if args.form else FORMS.values())},
        "version": VERSION, "checkpoint": str(origin or args.weights),
        "step": checkpoint.step_of(origin) if origin else None,
        "limits": {"sessions": args.max_sessions, "idle_s": args.idle_timeout, "message_bytes": LARGEST}}


class Ended(Exception):
    """This side ends a session: websocket's code, and the reason."""


class Request:
    """A message on its way. steps: `answered`; found: the chunk that it waits for, a Wanted, then what is sent."""

    def __init__(self, *message):
        self.steps, self.read, self.found = answered(*message), False, None

    def form(self):
        """Of the chunk that it waits for, None: it waits for none. Only now is the message read."""
        if not self.read:
            self.read, self.found = True, next(self.steps)
        return self.found.form() if isinstance(self.found, Wanted) else None


class Server:
    """args: the flags, as `check` leaves them."""

    def __init__(self, policy, args):
        self.args, self.packages, self.sessions, self.number = args, protocol.packages()[1], set(), 0
        self.policy, self.waiting, mode = policy, [], policy.engine.mode if policy.engine else "plain"
        must(args.batch_sessions == 1 or mode in ("plain", "eager"), f"--batch_sessions {args.batch_sessions}: engine "
             f"{mode} is prepared for one session at a time; use --engine eager, or plain")
        stats, self.metadata = policy.stats, metadata(policy, args)
        self.open = partial(Session, policy, Reader(stats, args.form, args.mask_missing), args.history, args.task,
                            held(stats, args.fps))
        if args.protocol == "xpolicylab":
            self.open = partial(Trials, *self.open.args[:4], self.metadata, args.execute_steps, args.gripper_threshold)
        self.model = ThreadPoolExecutor(1, "model")   # which makes its first chunk here: one from black pictures
        black = np.zeros((policy.config.model.view_size,) * 2 + (3,), np.uint8)
        self.model.submit(self.open().policy.plan, [{view: [black] * 2 for view in stats.cameras() or VIEWS}],
                          np.array([stats.state_mean], np.float32), [args.task or "go"], imagine=False).result()
        for name in handover.possible(policy):   # what an engine records for it, nobody waits for in an episode
            self.model.submit(handover.prepare, policy, name).result()

    async def run(self, signals=()):
        """Serve until `note` is called, by one of the signals for one -> what it was called with."""
        loop = asyncio.get_running_loop()
        self.stopped = loop.create_future()
        for number in signals:
            loop.add_signal_handler(number, self.note, number)
        logging.getLogger("websockets.server").disabled = True   # what strangers send is no fault of this program
        async with self.packages.asyncio.server.serve(
                self.session, sock=self.args.listener, process_request=self.request, origins=[None], compression=None,
                max_queue=1, max_size=LARGEST, open_timeout=5, close_timeout=ENDING):
            print("chunks of {chunk} actions, {fps:g} a second".format_map(self.metadata))
            if self.args.mask_missing:
                print("--mask_missing: a model learns to do without a camera only from data that lack it, too")
            print("serving on {} port {}".format(*self.args.listener.getsockname()), flush=True)
            number = await self.stopped
            await asyncio.gather(*(self.end(each, GOING, "the server is shutting down") for each in self.sessions))
            self.model.shutdown(wait=False, cancel_futures=True)
        return number

    def note(self, number):
        if self.stopped.done():   # the second time at once
            os._exit(128 + number)
        self.stopped.set_result(number)

    def request(self, connection, request):
        """An HTTP request that shall not become a session -> its answer."""
        if request.path == "/healthz":
            return connection.respond(200, "OK\n")
        given = "".join(request.headers.get_all("Authorization")).encode(errors="replace")
        if self.args.key and not hmac.compare_digest(given, b"Api-Key " + self.args.key):
            return connection.respond(401, "the header Authorization must be: Api-Key, a space, and the server's key\n")

    async def end(self, connection, code, reason):
        """Close a connection with a reason; one that does not take it is cut."""
        with suppress(TimeoutError):
            await asyncio.wait_for(connection.close(code, reason), ENDING)
        connection.transport.abort()

    async def session(self, connection):
        """One client, from its metadata to its end."""
        self.number, name = self.number + 1, f"session {self.number + 1} of {connection.remote_address[0]}"
        try:
            if len(self.sessions) >= self.args.max_sessions:
                raise Ended(LATER, f"{len(self.sessions)} sessions are open, the server's --max_sessions: try later")
            self.sessions.add(connection)
            print(f"{name} begins", flush=True)
            await self.converse(connection, self.open())
        except self.packages.exceptions.ConnectionClosed:
            reason = connection.close_reason or f"closed with code {connection.close_code}"
        except Ended as error:
            code, reason = error.args
            await self.end(connection, code, reason)
        finally:
            self.sessions.discard(connection)
        print(f"{name} ends: {' '.join(reason.split())[:200]}", flush=True)

    async def converse(self, connection, session):
        """Answer until the connection closes, or the client is silent (Ended) or deaf."""
        loop, total = asyncio.get_running_loop(), {}
        send = partial(within, SENDING, code=GOING, reason=f"the client took nothing for {SENDING} s")
        if self.args.protocol == "openpi":   # the other's client speaks first
            await send(connection.send(protocol.write(self.metadata)))
        while True:
            message = await within(self.args.idle_timeout, connection.recv(), GOING,
                                   f"no observation for {self.args.idle_timeout:g} s (--idle_timeout)")
            arrived = time.monotonic()
            self.waiting.append(request := Request(session, message, arrived, total))
            answer = await loop.run_in_executor(self.model, self.turn, request)
            if answer is None:
                raise Ended(DONE, "the client says goodbye")
            await send(connection.send(answer))
            total = {"prev_total_ms": 1e3 * (time.monotonic() - arrived)}

    def turn(self, request):
        """In the model's thread: a Request -> what answers it. Later ones of its form may be planned along with it."""
        self.waiting.remove(request)
        form, batch = request.form(), [request]
        for other in self.waiting[:]:
            if form and len(batch) < self.args.batch_sessions and other.form() == form:
                batch.append(other)
        if form:
            for each, made in zip(batch, self.policy.plan_together([each.found for each in batch])):
                each.found = (each.steps.throw if isinstance(made, Exception) else each.steps.send)(made)
        return request.found


def answered(session, message, arrived, total):
    """A generator in the model's thread: it yields what `Session.answer` does, then what is sent, also where something
    is wrong. None: the client says goodbye."""
    began = time.monotonic()
    try:
        answer = yield from session.answer(message, arrived)
        times = {"infer_ms": 1e3 * (time.monotonic() - began), "wait_ms": 1e3 * (began - arrived)}
        yield answer and session.write(answer | {"server_timing": times | total})
    except Exception as error:
        line = " ".join(str(error).split())[:1000]
        if not isinstance(error, ValueError):
            line = f"{type(error).__name__}: {line} (a fault of the server)"
            print(f"infer.py: {line}", file=sys.stderr, flush=True)
        yield session.refuse(line)


async def within(seconds, step, code, reason):
    """What is awaited. Ended(code, reason): it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await step
    except TimeoutError:
        raise Ended(code, reason) from None
