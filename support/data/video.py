"""Films, exactly: when their pictures are shown, and those pictures, for as little decoding as the file allows.

A picture is taken by the time stamp that it carries, in ticks of the film's clock. What makes it fast, by its worth:

    an opened file stays open       opening costs as much as decoding a frame; 32 files a process, used last
    one pass a group of pictures    frames asked for together are decoded in order, each from its key frame once
    the decoder is drained          frames that H.264 holds back to reorder them are not pushed out by decoding on
    frames that no other needs      are skipped on the way to the one that is wanted (H.264, HEVC, MPEG-4)

Nothing here starts a thread: a forked process must be able to close what it inherits. It opens its own files."""

import os
from collections import OrderedDict

import numpy as np

from support.data.picture import check_size
from support.files import damage, must

INSTALL = "reading LeRobot datasets needs pyarrow and av: run  pip install -r requirements-robot.txt"
CONTAINERS = {"mp4", "matroska"}   # say of every picture when it is shown, and can be entered at any key frame
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
_STAMPS = LRU(64 << 20, lambda film: film[0].nbytes)   # path -> what stamps() gives


class _Video:
    """An open film with its decoder."""

    def __init__(self, path, where=""):
        self.container = pyav().open(str(path))
        kind = self.container.format.name
        must(CONTAINERS & {*kind.split(",")}, f"{where}: {path} is of the kind {kind}, in which pictures cannot be "
             "found by time: make an mp4 of it, as  ffmpeg -i OLD NEW.mp4  does")
        streams = [stream for stream in self.container.streams.video
                   if not stream.disposition & pyav().stream.Disposition.attached_pic]   # a cover is no film
        must(len(streams) == 1, f"it holds {len(streams)} streams of pictures, a film has one")
        self.stream = streams[0]
        check_size(self.stream.height, self.stream.width)
        self.tick, self.decoder = float(self.stream.time_base), self.stream.codec_context
        self.decoder.thread_count = 1
        self.reformatter = pyav().video.reformatter.VideoReformatter()   # keeps its tables from frame to frame

    def stamps(self):
        """As the function of this name; nothing is decoded. The index of an mp4 has the stamps of decoding: where they
        are even, and the first pictures are shown in such steps, those of showing are the same from the first one on.
        Any other film is read through."""
        index = [entry.timestamp for entry in self.stream.index_entries if not entry.is_discard]
        steps = set(np.diff(index).tolist())
        even = len(index) == self.stream.frames and len(steps) == 1
        self.container.seek(min(index, default=0), stream=self.stream)
        found = []
        for packet in self.container.demux(self.stream):
            if packet.size and not packet.is_discard:   # an edit list discards what is only decoded
                found.append(packet.pts)
            if even and len(found) > 15 and packet.dts is not None and packet.dts >= min(found):   # none is sooner
                even = not (np.subtract(found, min(found)) % max(steps)).any()
                if even:
                    found = np.subtract(index, index[0] - min(found)).tolist()
                    break
        if not found or None in found or len(set(found)) < len(found):
            raise ValueError("it has no pictures" if not found else "pictures of it have no time stamp, or the same")
        return np.sort(found), self.tick

    def one_pass(self, start, wanted):
        """One pass from the key frame before `start` over wanted[0] and what shares its group of pictures.
        wanted: stamps, ascending -> {stamp: (H, W, 3) uint8 RGB} of some; wanted[0] lacks where the pass begins behind
        it. Packets are held back until one is wanted: nothing behind the last wanted one is decoded."""
        self.container.seek(start, stream=self.stream)
        held, frames, fed, last = [], {}, set(), wanted[-1]
        for packet in self.container.demux(self.stream):
            if packet.pts is None:   # the end of the file
                break
            if packet.is_keyframe and fed or packet.dts is not None and packet.dts > last:
                break                # what is still wanted starts a run of its own
            held.append(packet)
            if packet.pts in wanted:
                for each in held:
                    frames |= self._decode(each, wanted)
                held, fed = [], fed | {packet.pts}
                if len(fed) == len(wanted):
                    break
        if fed:
            frames |= self._decode(None, wanted)
        return {stamp: upright(self.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), frame.rotation,
                               frame.side_data.get("DISPLAYMATRIX")) for stamp, frame in frames.items()}

    def _decode(self, packet, wanted):
        """{stamp: frame} of the wanted ones that come out for a packet; for None, those that are held back."""
        if packet and self.decoder.name in SKIPS_UNREFERENCED:
            self.decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        return {frame.pts: frame for frame in self.decoder.decode(packet)
                if frame.pts in wanted and not frame.is_corrupt}


def upright(picture, rotation, matrix=None):
    """(H, W, 3) as it is stored -> as the film says that it is shown: turned by `rotation` degrees, counterclockwise.
    matrix: of which FFmpeg has the rotation; where its determinant is negative, the picture is mirrored before.
    ValueError: by no quarter."""
    a, b, _, c, d = np.frombuffer(matrix or np.int32([1, 0, 0, 0, 1]), np.int32)[:5].astype(float)
    if a * d < b * c:
        picture, rotation = picture[:, ::-1], rotation + 180   # FFmpeg's is of the first row, which this turns round
    turns, rest = divmod(rotation, 90)
    must(not rest, f"it says that its pictures are turned by {rotation} degrees: turn them, and write the film again")
    return np.ascontiguousarray(np.rot90(picture, turns))


def stamps(path, where):
    """When the pictures of a film are shown: (n,) int64 ticks, ascending, and the seconds of a tick.
    ValueError, one line that begins with `where`: not readable."""
    with damage(where, f"{path} cannot be decoded", path):
        return _STAMPS.get(str(path), lambda: _OPEN.get((os.getpid(), str(path)), lambda: _Video(path, where)).stamps())


def read_frames(path, wanted, where):
    """The pictures of a film that are shown at the stamps `wanted`, in that order: list of (H, W, 3) uint8 RGB.
    ValueError, one line that begins with where(i) for wanted[i]: it cannot be decoded."""
    key, left, pictures = (os.getpid(), str(path)), sorted(set(wanted)), {}
    while left:
        with damage(where(wanted.index(left[0])), f"{path} cannot be decoded", path):
            try:
                video = _OPEN.get(key, lambda: _Video(path))
                # Where B-frames shift a key frame, a seek may land after the target: start 1 s earlier, then at first.
                for start in (left[0], left[0] - round(1 / video.tick), -1 << 40):
                    found = video.one_pass(start, left)
                    if left[0] in found:
                        break
                else:
                    raise ValueError(f"no picture comes out for {left[0] * video.tick:.3f} s")
            except Exception:   # FFmpeg's own, and whatever its bindings make of damaged bytes
                _OPEN.drop(key), _STAMPS.drop(str(path))
                raise
        pictures |= found
        left = [stamp for stamp in left if stamp not in pictures]
    return [pictures[stamp] for stamp in wanted]
