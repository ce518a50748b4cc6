"""Damaged and hostile variants of an SAE on disk: bytes, headers, names, types, shapes, configurations, pickles."""

import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

JSON_VALUES = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "relu", "topk", "jumprelu", "../../etc/passwd", "\x00", "é" * 50, [], [1, 2], {}, {"k": 3}, [[[]]]),
)


class Runs:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@dataclass
class Original:
    """A valid SAE on disk: the folder of its files, what of it is loaded, and its files by kind."""

    folder: Path
    path: Path
    files: dict[Path, bytes]

    @classmethod
    def of(cls, root: Path, path: Path):
        return cls(root, path, {file: file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()})

    def restore(self):
        for file, data in self.files.items():
            if not file.is_file() or file.is_symlink() or file.read_bytes() != data:
                file.unlink(missing_ok=True)
                file.write_bytes(data)


def damage(original: Original, rng: random.Random, canary: Path) -> str:
    """Change one of the files; returns what was done."""
    weights = [file for file in original.files if file.suffix in (".npz", ".safetensors", ".pt", ".pth")]
    configs = [file for file in original.files if file.suffix in (".json", ".yaml")]
    kinds = [_bytes, _bytes, _cut, _tensors, _tensors, _header] + ([_config, _config] if configs else [])
    kind = rng.choice([*kinds, _hostile] if weights[0].suffix in (".pt", ".pth", ".npz") else kinds)
    file = rng.choice(configs if kind is _config else weights if kind in (_tensors, _header, _hostile) else
                      [*weights, *configs])  # fmt: skip
    data = original.files[file]
    changed = kind(file, data, rng, canary)
    file.write_bytes(changed)
    return f"{kind.__name__} of {file.name}"


def _bytes(file, data, rng, canary):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        # headers and directories lie at the ends
        place = rng.choice((rng.randrange(len(data)), rng.randrange(min(len(data), 600)),
                            len(data) - 1 - rng.randrange(min(len(data), 900))))  # fmt: skip
        if rng.random() < 0.7:
            data[place] = rng.choice((0, 1, 255, data[place] ^ (1 << rng.randrange(8)), rng.randrange(256)))
        elif rng.random() < 0.5:
            del data[place : place + rng.choice((1, 2, 8, 100))]
        else:
            data[place:place] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 50))))
        if not data:
            break
    return bytes(data)


def _cut(file, data, rng, canary):
    at = rng.randrange(len(data) + 1)
    return rng.choice((data[:at], data[at:], data + data[:at], data[:at] + bytes(len(data) - at), data + b"\n"))


def _tensors(file, data, rng, canary):
    """The same container with a tensor that is absent, renamed, doubled, or of another type, shape or value."""
    tensors = _read(file, data)
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    change = rng.choice(("drop", "rename", "add", "dtype", "shape", "value"))
    if change == "rename":
        tensors[rng.choice((name.upper(), name.lower(), name + "_", "W_enc", "bias", ""))] = tensor
    elif change == "add":
        other = rng.choice(("W_skip", "affine_skip_connection", "scaling_factor", "threshold", "k", "W_dec", "b_dec"))
        tensors |= {name: tensor, other: torch.randn(rng.choice(((), (3,), (24, 24), (0,), (96,))))}
    elif change == "dtype":
        kinds = [torch.int64, torch.int8, torch.bool, torch.float64, torch.float16, torch.uint8]
        tensors[name] = tensor.to(rng.choice(kinds))
    elif change == "shape":
        tensors[name] = rng.choice(
            (tensor.flatten(), tensor[None], tensor[..., :-1] if tensor.dim() else tensor, tensor.new_zeros(0),
             tensor.T.contiguous() if tensor.dim() == 2 else tensor, tensor.new_ones(()), tensor.new_ones(1, 1))
        )  # fmt: skip
    elif change == "value":
        tensor = tensor.float().clone(memory_format=torch.contiguous_format)
        value = rng.choice((float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 0.0, 1e-45))
        tensor.view(-1)[: rng.choice((1, tensor.numel()))] = value
        tensors[name] = tensor
    return _written(file, tensors)


def _read(file, data):
    if file.suffix == ".safetensors":
        return dict(load_file(file))
    if file.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in np.load(io.BytesIO(data)).items()}
    return dict(torch.load(io.BytesIO(data), weights_only=True))


def _written(file, tensors):
    buffer = io.BytesIO()
    if file.suffix == ".safetensors":
        return save({name: tensor.contiguous() for name, tensor in tensors.items()})
    if file.suffix == ".npz":
        np.savez(buffer, **{name or "x": tensor.numpy() for name, tensor in tensors.items()})
    else:
        torch.save(tensors, buffer)
    return buffer.getvalue()


def _header(file, data, rng, canary):
    """Another number, name or type in what describes the tensors."""
    if file.suffix == ".safetensors":
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        _change_json(header[rng.choice(sorted(header))], rng)
        text = json.dumps(header).encode()
        return struct.pack("<Q", rng.choice((len(text), len(text), len(text) + 8))) + text + data[8 + length :]
    members = _members(data)
    described = [n for n in members if n.endswith((".npy", ".pkl", "byteorder"))]
    name = rng.choice(described)
    head = bytearray(members[name])
    for _ in range(rng.choice((1, 2, 3))):
        place = rng.randrange(min(len(head), 128 if name.endswith(".npy") else len(head)))
        head[place] = rng.choice((ord("9"), ord("("), ord("'"), 0, 255, rng.randrange(256)))
    members[name] = bytes(head)
    return _archive(members, rng)


def _members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _archive(members, rng):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice
        with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, 8))) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
            if rng.random() < 0.2:
                archive.writestr(*rng.choice(list(members.items())))
    return buffer.getvalue()


def _config(file, data, rng, canary):
    if file.suffix == ".yaml" or rng.random() < 0.1:
        return rng.choice((b"", b"[]", b"null", b"{", b"[" * 5000, b"\xff\xfe", data[: len(data) // 2], data * 2))
    config = json.loads(data)
    inner = config.get(rng.choice(("trainer", "metadata", "dataset_average_activation_norm", "")))
    _change_json(inner if isinstance(inner, dict) and inner else config, rng)
    return json.dumps(config).encode(errors="surrogatepass")


def _change_json(thing, rng):
    name = rng.choice(sorted(thing))
    change = rng.random()
    if change < 0.2:
        del thing[name]
    elif change < 0.3:
        thing[name + "_"] = thing.pop(name)
    elif isinstance(thing[name], list) and thing[name] and change < 0.8:
        thing[name][rng.randrange(len(thing[name]))] = rng.choice(JSON_VALUES)
    else:
        thing[name] = rng.choice(JSON_VALUES)


def _hostile(file, data, rng, canary):
    """A pickle that makes the canary, as the file, in its place, or beside tensors; archives of absurd contents."""
    bomb = Runs(canary)
    if file.suffix == ".npz":
        array = np.array([bomb], dtype=object)
        buffer = io.BytesIO()
        np.savez(buffer, **{"W_enc": array} if rng.random() < 0.5 else {**np.load(io.BytesIO(data)), "b_enc": array})
        return buffer.getvalue() if rng.random() < 0.7 else pickle.dumps(bomb, rng.randrange(6))
    members = _members(data)
    name = next(n for n in members if n.endswith("data.pkl"))
    change = rng.randrange(4)
    if change == 0:
        return pickle.dumps(bomb, rng.randrange(6))
    if change == 1:
        members[name] = pickle.dumps({"W_enc": bomb} if rng.random() < 0.5 else bomb, rng.randrange(6))
    elif change == 2:  # before what is there: a pickle's first STOP ends it, so its instructions go in without one
        members[name] = members[name][:2] + pickle.dumps(bomb, 2)[2:-1] + b"0" + members[name][2:]
    else:
        buffer = io.BytesIO()
        torch.save(dict(_read(file, data)) | {"extra": bomb}, buffer, pickle_protocol=rng.choice((2, 4)))
        return buffer.getvalue()
    return _archive(members, rng)
