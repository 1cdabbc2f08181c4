"""Frames of mp4 files, exactly: the pictures shown at given seconds, for as little decoding as the file allows.

A frame is taken by the time it carries, never by counting. What makes it fast, by what it is worth:

    an opened file stays open       opening costs as much as decoding a frame; 32 files a process, used last
    one pass a group of pictures    frames asked for together are decoded in order, each from its key frame once
    the decoder is drained          frames that H.264 holds back to reorder them are not pushed out by decoding on
    frames that no other needs      are skipped on the way to the one that is wanted (H.264, HEVC, MPEG-4)

Nothing here starts a thread: a forked process must be able to close what it inherits. It opens its own files.
"""

import os
from collections import OrderedDict

INSTALL = "reading LeRobot datasets needs pyarrow and av: run  pip install -r requirements-robot.txt"
EXACT = 1e-4   # seconds: the format's own tolerance, above a tick of a stream's clock
SKIPS_UNREFERENCED = ("h264", "hevc", "mpeg4")   # decoders that look at skip_frame before every packet


def pyav():
    """The package. ImportError: one line that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return av


class LRU:
    """The values used last, of a total size of at most `limit`, but always the newest. close: called with what goes."""

    def __init__(self, limit, size=lambda value: 1, close=lambda value: None):
        self.limit, self.size, self.close, self.items, self.total = limit, size, close, OrderedDict(), 0

    def get(self, key, make):
        """The value of `key`, from make() when it is not held."""
        if key not in self.items:
            self.items[key] = make()
            self.total += self.size(self.items[key])
            while self.total > self.limit and len(self.items) > 1:
                self.drop(next(iter(self.items)))
        self.items.move_to_end(key)
        return self.items[key]

    def drop(self, key):
        if key in self.items:
            value = self.items.pop(key)
            self.total -= self.size(value)
            self.close(value)


# (process, path) -> _Video, for all datasets of this process. PyAV's objects hold each other: close() is needed.
_OPEN = LRU(32, close=lambda video: video.container.close())


class _Video:
    """An open mp4 with its decoder."""

    def __init__(self, path):
        self.container = pyav().open(str(path))
        self.stream = self.container.streams.video[0]
        self.tick, self.decoder = float(self.stream.time_base), self.stream.codec_context
        self.decoder.thread_count = 1
        self.reformatter = pyav().video.reformatter.VideoReformatter()   # keeps its tables from frame to frame

    def one_pass(self, start, wanted, tolerance):
        """One pass from the key frame before `start` over wanted[0] and what shares its group of pictures.

        wanted: seconds, ascending -> {second: the nearest frame, (H, W, 3) uint8 RGB}, time of the frame nearest to
        wanted[0] or None. Packets are held back until one is wanted: nothing behind the last wanted one is decoded.
        """
        self.container.seek(int(start / self.tick), stream=self.stream)
        held, frames, fed, exact, nearest = [], [], set(), set(), None
        for packet in self.container.demux(self.stream):
            if packet.pts is None:   # the end of the file
                break
            time = packet.pts * self.tick
            if nearest is None or abs(time - wanted[0]) < abs(nearest - wanted[0]):
                nearest = time
            near = {second for second in wanted if abs(time - second) <= tolerance}
            if packet.is_keyframe and fed and not near & fed:   # what is still wanted starts a run of its own
                break
            if packet.dts is not None and packet.dts * self.tick > wanted[-1] + tolerance:
                break
            held.append((packet, bool(near)))
            if near:
                frames += [frame for each in held for frame in self._decode(*each, wanted, tolerance)]
                held, fed = [], fed | near
                exact |= {second for second in near if abs(time - second) < EXACT}
                if len(exact) == len(wanted):
                    break
        if fed:
            frames += self._decode(None, True, wanted, tolerance)
        found = {}
        for second in fed:
            frame = min(frames, key=lambda frame: abs(frame.pts * self.tick - second), default=None)
            if frame is not None and abs(frame.pts * self.tick - second) <= tolerance:
                found[second] = self.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return found, nearest

    def _decode(self, packet, needed, wanted, tolerance):
        """The frames near to a wanted second that come out for a packet; for None, those that are held back."""
        if packet and self.decoder.name in SKIPS_UNREFERENCED:
            self.decoder.skip_frame = "DEFAULT" if needed else "NONREF"
        return [frame for frame in self.decoder.decode(packet) if frame.pts is not None
                and any(abs(frame.pts * self.tick - second) <= tolerance for second in wanted)]


def read_frames(path, seconds, tolerance, where):
    """The pictures shown at `seconds` of an mp4, in that order: list of (H, W, 3) uint8 RGB.

    ValueError, one line that begins with where(i) for seconds[i]: not decodable, or no frame within `tolerance`.
    """
    key, left, pictures = (os.getpid(), str(path)), sorted(set(seconds)), {}
    try:
        while left:
            video = _OPEN.get(key, lambda: _Video(path))
            # Where B-frames shift a key frame, a seek may land after the target: start 1 s earlier, then at 0.
            for start in (left[0], max(left[0] - 1, 0), 0):
                found, nearest = video.one_pass(start, left, tolerance)
                if left[0] in found:
                    break
            else:
                at = "no frame at all" if nearest is None else f"one at {nearest:.3f} s"
                raise ValueError(f"{where(seconds.index(left[0]))}: {path} has no frame at {left[0]:.3f} s (nearest: "
                                 f"{at}); it is shorter than the dataset says: download the file again")
            pictures |= found
            left = [second for second in left if second not in pictures]
    except ImportError:
        raise
    except Exception as error:   # FFmpeg's own, and whatever its bindings make of damaged bytes
        at = where(seconds.index(left[0]))
        if str(error).startswith(at):
            raise
        _OPEN.drop(key)
        raise ValueError(f"{at}: {path} cannot be decoded ({error}); download the file again") from error
    return [pictures[second] for second in seconds]
