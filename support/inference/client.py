"""A robot's side of infer.py --serve: copy this one file to the robot's machine. It needs numpy, websockets, msgpack.

`step` gives one action a frame. The next chunk is asked for in the background. When it comes, the robot goes on with
its action for the present frame: the latency is skipped, not added. Each request carries the frame of m frames ago.
docs/serving.md has the loop around it."""

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect


def _pack(x):
    if not isinstance(x, (np.ndarray, np.generic)):
        raise TypeError(f"a {type(x).__name__} cannot be sent")
    return {b"__ndarray__": True, b"data": x.tobytes(), b"dtype": x.dtype.str, b"shape": x.shape}


def _unpack(x):
    return np.frombuffer(x[b"data"], x[b"dtype"]).reshape(x[b"shape"]) if b"__ndarray__" in x else x


class Client:
    """One connection. patience: seconds for which an absent server is waited for, then ConnectionError."""

    def __init__(self, host="127.0.0.1", port=8000, api_key=None, patience=60.0):
        self.address = f"ws://{host}:{port}"
        self.headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self.patience, self.socket, self.prompt = patience, None, None
        self.pool = ThreadPoolExecutor(1, "client")
        self.connect()

    def connect(self):
        """Connect, at once or within `patience`, and read the server's metadata. ConnectionError: there is none."""
        end, wait = time.monotonic() + self.patience, 0.1
        while True:
            try:
                self.socket = connect(self.address, compression=None, max_size=1 << 28, proxy=None,
                                      additional_headers=self.headers).__enter__()
                self.metadata = msgpack.unpackb(self.socket.recv(30), object_hook=_unpack)
                return
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as error:
                refused = getattr(getattr(error, "response", None), "status_code", 0) in (401, 403)
                if refused or time.monotonic() + wait > end:
                    raise ConnectionError(f"no policy server at {self.address}: {error}") from error
            time.sleep(wait)
            wait = min(2 * wait, 5)

    def ask(self, observation):
        """One observation -> the server's answer. ValueError: what the server says is wrong with it."""
        self.socket.send(msgpack.packb(observation, default=_pack))
        answer = self.socket.recv()
        if isinstance(answer, str):
            raise ValueError(answer)
        return msgpack.unpackb(answer, object_hook=_unpack)

    def reset(self, prompt, execute_steps=None, handover="identity", wait=False):
        """Begin an episode. execute_steps: actions of a chunk before the next is asked for (default: half of it).
        handover: how a chunk goes on from the last one. wait: for each chunk, as a simulator can; else for an episode's
        first. ValueError: not one of metadata["handovers"]."""
        if handover not in self.metadata["handovers"]:
            raise ValueError(f"handover {handover}: this server offers {', '.join(self.metadata['handovers'])}")
        self.prompt, self.wait, self.execute = prompt, wait, execute_steps or max(1, self.metadata["chunk"] // 2)
        self.history = deque(maxlen=self.metadata["m"] + 1)
        self.t, self.chunk, self.pending, self.last = -1, None, None, None
        self.handover, self.starved, self.delay = handover, 0, 0   # steps without an action; frames until a chunk came
        self.delays = deque([1], 8)   # of eight chunks; the slowest says what is expected

    def step(self, pictures, state=None):
        """pictures: camera -> uint8 (H, W, 3); state (d_q,) -> action (d_a,). Without an answer in time the last action
        is held, 0 for a velocity or a torque; so it is while a lost server is waited for."""
        if self.prompt is None:
            raise ValueError("call reset(prompt) before the first step")
        self.t += 1
        self.history.append({view: np.array(picture) for view, picture in pictures.items()})   # drivers reuse buffers
        if self.pending is None and (self.chunk is None or self.t >= self.began + self.execute):
            ago = len(self.history) - 1 if self.history[0].keys() == pictures.keys() else 0
            request = {"images": self.history[-1], "past": {"images": self.history[-1 - ago]}, "past_age": ago,
                       "state": np.array(() if state is None else state, np.float32), "prompt": self.prompt,
                       "frame": self.t, "reset": self.chunk is None, "handover": self.handover}
            if self.chunk is not None:
                left = max(0, len(self.chunk) - (self.t - self.began))
                request |= {"executed": len(self.chunk) - left, "delay": min(max(self.delays), left)}
            self.asked, self.pending = self.t, self.pool.submit(self._ask, request)
        if self.chunk is None or self.pending and (self.wait or self.pending.done()):
            planned, self.pending = self.pending, None
            answer = planned.result()
            if answer is not None:   # else the next step asks again, as it does where this one raises
                self.chunk, self.began, self.delay = answer["actions"], self.asked, self.t - self.asked
                self.delays.append(self.delay)
        at = self.t - self.began
        self.starved += at >= len(self.chunk)
        kinds = np.array(self.metadata["action_kinds"])
        self.last = self.chunk[at] if at < len(self.chunk) else np.where(kinds == "position", self.last, np.float32(0))
        return np.array(self.last)   # which the caller may change

    def _ask(self, request):
        """The answer. None: the server was lost, and is there again; what `step` waits for is asked again."""
        try:
            return self.ask(request)
        except (ConnectionClosed, OSError):
            self.connect()
            return self.ask(request) if self.wait or request["reset"] else None

    def close(self):
        """End the session. A server that is lost is not waited for."""
        self.patience = 0
        self.socket.close()
        self.pool.shutdown(cancel_futures=True)
