"""Which entries of a client's observation are which camera, the state and the instruction.

The clients of openpi's examples and of XPolicyLab are known (FORMS). Any other is described by --keys FILE, a JSON as

    {"cameras": {"head": "images/top", "left_wrist": "images/wrist"}, "state": ["joints", ["gripper", [0, 1]]],
     "prompt": "task", "layout": "HWC", "dtype": "uint8"}

All but the cameras may be left out. An entry is a key, or the keys of nested maps with slashes between them. State
entries are joined in order; [first, end) takes some dimensions. What no entry names is not looked at."""

from dataclasses import dataclass

import numpy as np

from config import VIEWS
from support.files import must, numbers, read_json, without_nul

LAYOUTS = {"HWC": "(H, W, 3)", "CHW": "(3, H, W)"}
DTYPES = {"uint8": "uint8", "float": "float from 0 to 1", "": "uint8, or float from 0 to 1"}


@dataclass(frozen=True)
class Keys:
    """The form of a client's observations: fields as in a file. `unread`: entries that it sends and nobody reads."""

    name: str
    cameras: dict
    state: tuple = ("state",)
    prompt: str = "prompt"
    layout: str = "HWC"
    dtype: str = ""
    unread: tuple = ()


FORMS = {form.name: form for form in (
    Keys("views", {view: f"images/{view}" for view in VIEWS}),   # of client.py beside this file
    Keys("aloha", dict(zip(VIEWS, ("images/cam_high", "images/cam_left_wrist", "images/cam_right_wrist"))),
         layout="CHW", unread=("images/cam_low",)),
    Keys("libero", {"head": "observation/image", "left_wrist": "observation/wrist_image"}, ("observation/state",)),
    Keys("droid", {"head": "observation/exterior_image_1_left", "left_wrist": "observation/wrist_image_left"},
         ("observation/joint_position", "observation/gripper_position")),
    Keys("xpolicylab", {view: f"vision/cam_{view}/color" for view in VIEWS}, prompt="instruction",
         state=tuple(f"state/{part}_joint_state" for part in ("left_arm", "left_ee", "right_arm", "right_ee"))))}


def _part(entry):
    """Whether this is an entry of `state`."""
    key, *ranges = entry if isinstance(entry, list) and entry else [entry]
    return isinstance(key, str) and all(isinstance(of, list) and len(of) == 2 and all(type(n) is int for n in of)
                                        and 0 <= of[0] < of[1] for of in ranges)


FIELDS = {   # of a file: what it is, and whether it is
    "cameras": (f"{{slot: entry}} of {', '.join(VIEWS)}, each of another entry", lambda x: isinstance(x, dict) and x
                and {*x} <= {*VIEWS} and all(isinstance(entry, str) for entry in x.values())
                and len({*x.values()}) == len(x)),
    "state": ("a list of entries and [entry, [first, end], ...]", lambda x: isinstance(x, list) and all(map(_part, x))),
    "prompt": ("an entry", lambda x: isinstance(x, str)),
    "layout": ("HWC or CHW", lambda x: x in ("HWC", "CHW")),
    "dtype": ("uint8 or float", lambda x: x in ("uint8", "float"))}


def find_keys(named):
    """--keys: a name of FORMS, or a JSON file -> Keys; None without one. ValueError: one line."""
    if named is None or named in FORMS:
        return FORMS.get(named)
    must(named.endswith(".json"), f"--keys {named}: give one of {', '.join(FORMS)}, or a .json file, described at the "
         "top of support/inference/observation_keys.py")
    row = {"cameras": {}, **read_json(named)}
    for key, found in row.items():
        what, holds = FIELDS.get(key, (f"only {', '.join(FIELDS)}", lambda _: False))
        must(holds(found), f"--keys {named}: {key:.60} is {found!r:.100}, expected {what}: correct it")
    return Keys("file", **row)


def find(observation, entry):
    """What stands under an entry, None where nothing does."""
    if entry in observation:
        return observation[entry]
    for key in entry.split("/"):
        observation = observation.get(key) if isinstance(observation, dict) else None
    return observation


class Reader:
    """Observations of one robot, read. keys: None, then each one's own form is found. mask_missing: serve without a
    camera that the checkpoint was trained with. Every ValueError is one line that names the entry."""

    def __init__(self, stats, keys=None, mask_missing=False):
        self.stats, self.keys, self.mask_missing = stats, keys, mask_missing

    def form(self, observation):
        """The Keys of an observation: those given, else the form with most of its cameras in it."""
        if self.keys:
            return self.keys
        found = {name: sum(find(observation, entry) is not None for entry in form.cameras.values())
                 for name, form in FORMS.items()}
        best = max(found, key=found.get)
        expected = ", ".join(f"{form.cameras['head']} ({name})" for name, form in FORMS.items())
        must(found[best], f"no camera found under {', '.join(observation)[:200] or 'no key'}: expected {expected}; or "
             "start the server with --keys FILE.json")
        return FORMS[best]

    def pictures(self, observation, where=""):
        """observation -> view -> (H, W, 3) uint8. where: stands before its entries in messages."""
        form, trained = self.form(observation), self.stats.cameras()
        sent = {view: (entry, find(observation, entry)) for view, entry in form.cameras.items()
                if view in (trained or VIEWS)}
        found = {view: picture(of, where + entry, form) for view, (entry, of) in sent.items() if of is not None}
        missing = [view for view in trained or sent if view not in found]
        if missing and not (found and (self.mask_missing or not trained)):
            entry = form.cameras.get(missing[0])
            raise ValueError(f"camera {missing[0]} is missing ({where + entry if entry else 'no key has it'}); the "
                             f"checkpoint was trained with {', '.join(trained)}: send it, or start the server with "
                             "--mask_missing")
        known, nested = {*form.cameras.values(), *form.unread}, observation.get("images")
        extra = {f"images/{key}": of for key, of in nested.items()} if isinstance(nested, dict) else {}
        for entry, of in {} if form.name == "file" else (observation | extra).items():
            must(entry in known or not isinstance(of, np.ndarray) or of.ndim != 3,
                 f"{where + entry:.100} is of no known camera: known are {', '.join(sorted(known))}; drop it, "
                 "or start the server with --keys FILE.json")
        return found

    def state(self, observation):
        """observation -> q_t (d_q,) float32."""
        form, d, named, parts = self.form(observation), len(self.stats.state_mean), [], [np.zeros(0, np.float32)]
        for entry in form.state if d else ():
            key, *ranges = [entry] if isinstance(entry, str) else entry
            value = find(observation, key)
            must(value is not None, f"{key} is missing; robot '{self.stats.robot}' has {d} state dimensions")
            value = numbers(value, key, ndim=1, repair="correct what is sent")
            must(all(last <= len(value) for _, last in ranges),
                 f"{key} has {len(value)} numbers, --keys takes {ranges} of it: correct one of them")
            parts += [value[slice(*of)] for of in ranges] or [value]
            named.append(key)
        must(sum(map(len, parts)) == d, f"{' + '.join(named)} has {sum(map(len, parts))} numbers; robot "
             f"'{self.stats.robot}' has {d} state dimensions")
        return np.concatenate(parts)

    def prompt(self, observation):
        """The instruction, None where there is none."""
        text = find(observation, entry := self.form(observation).prompt)
        found = f"text of {len(text):,} letters" if isinstance(text, str) else f"a {type(text).__name__}"
        must(text is None or isinstance(text, str) and len(text) <= 10_000,
             f"{entry} is {found}; expected text of at most 10,000 letters")
        return text and without_nul(text, entry)


def picture(value, where, form):
    """A camera's picture as it was sent -> (H, W, 3) uint8, contiguous."""
    expected, is_array = f"expected {DTYPES[form.dtype]}, {LAYOUTS[form.layout]}", isinstance(value, np.ndarray)
    kind = {"u1": "uint8", "f2": "float", "f4": "float", "f8": "float"}.get(value.dtype.str[1:] if is_array else "")
    found = f"{value.dtype} {value.shape}" if is_array else f"a {type(value).__name__}"
    must(kind and form.dtype in ("", kind) and value.ndim == 3 and value.size
         and value.shape[form.layout.index("C")] == 3, f"{where} is {found}; {expected}")
    if kind == "float":
        low, high = float(value.min()), float(value.max())
        must(0 <= low and high <= 1, f"{where} has values from {low:g} to {high:g}; {expected}")   # not NaN
        value = np.rint(255 * value.astype(np.float32)).astype(np.uint8)
    return np.ascontiguousarray(value if form.layout == "HWC" else value.transpose(1, 2, 0))
