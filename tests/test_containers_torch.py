"""Files of torch.save: equal to torch.load(weights_only=True), read in place, their pickle never run."""

import collections
import io
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from sparsesteer.loaders.containers.pickles import read_pickle
from sparsesteer.loaders.containers.torch_file import open_torch_file
from sparsesteer.storage import StoredTensor

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
    *(torch.int8, torch.uint8, torch.bool),
)


def saved(tmp_path, contents, **options):
    torch.save(contents, tmp_path / "a.pt", **options)
    return tmp_path / "a.pt"


def matrix(dtype=torch.float32):
    return (torch.randn(13, 7, generator=torch.Generator().manual_seed(0)) * 10).to(dtype)


def assert_same(path, weights_only=True):
    want, got = torch.load(path, weights_only=weights_only), open_torch_file(path)
    assert list(got) == list(want)
    for name, tensor in want.items():
        if not isinstance(tensor, torch.Tensor):
            assert got[name] == tensor
            continue
        assert isinstance(got[name], StoredTensor) and got[name].dtype == tensor.dtype
        assert torch.equal(got[name].load(), tensor.detach())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype, tmp_path):
    assert_same(saved(tmp_path, {"m": matrix(dtype), "v": matrix(dtype)[0].clone(), "n": torch.tensor(3).to(dtype)}))


CONTENTS = {
    "transposed": {"m": matrix().T},
    "a slice of columns": {"m": matrix()[:, 2:5]},
    "a slice of rows": {"m": matrix()[3:9]},
    "every second row": {"m": matrix()[::2]},
    "a transposed slice": {"m": matrix().T[1:4, 2:]},
    "a column": {"v": matrix()[:, 2]},
    "one row": {"m": matrix()[:1]},
    "one column": {"m": matrix()[:, :1]},
    "one number": {"m": matrix()[:1, :1]},
    "two of one storage": dict(zip("ab", matrix().split(5), strict=False)),
    "three axes": {"t": torch.randn(2, 3, 4)},
    "parameters": {"m": nn.Parameter(matrix()), "v": nn.Parameter(torch.ones(3), requires_grad=False)},
    "ordered": collections.OrderedDict(b=torch.ones(2), a=torch.zeros(3)),
    "beside others": {"m": matrix(), "k": 32, "name": "topk", "rate": 0.5, "none": None, "flag": True, "big": 1 << 70},
    "empty tensors": {"m": torch.zeros(0, 3), "v": torch.zeros(0)},
    "nothing": {},
}


@pytest.mark.parametrize("contents", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_contents_equal_torchs(contents, protocol, tmp_path):
    """Protocols from 4 on are more than torch.load(weights_only=True) reads."""
    assert_same(saved(tmp_path, contents, pickle_protocol=protocol), weights_only=protocol < 4)


def test_the_state_of_a_module(tmp_path):
    assert_same(saved(tmp_path, nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)).state_dict()))


@pytest.mark.parametrize("name", ["transposed", "a slice of columns", "every second row", "a transposed slice"])
def test_rows_and_columns_equal_indexing(name, tmp_path):
    want, stored = CONTENTS[name]["m"], open_torch_file(saved(tmp_path, CONTENTS[name]))["m"]
    for picked, taken, axis in ((stored.rows, want, 0), (stored.columns, want.T, 1)):
        indices = torch.tensor([0, want.shape[axis] - 1, 1])
        assert torch.equal(picked(indices), taken[indices])


class Runs:
    """What a pickle would do when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(canary):
    """name: (what is saved, what the error says)"""
    touch = f"touch {canary}"
    return {
        "a command": (Runs(os.system, touch), "would call posix.system"),
        "a command in a dictionary": ({"m": matrix(), "x": Runs(os.system, touch)}, "would call posix.system"),
        "eval": ({"m": Runs(eval, f"open({str(canary)!r}, 'w')")}, "would call (builtins|__builtin__).eval"),
        "exec": ({"m": Runs(exec, f"open({str(canary)!r}, 'w')")}, "would call (builtins|__builtin__).exec"),
        "open": ({"m": Runs(open, str(canary), "w")}, r"would call (io|_io|builtins|__builtin__).open"),
        "getattr": ({"m": Runs(getattr, "text", "upper")}, "would call (builtins|__builtin__).getattr"),
        "torch.load": ({"m": Runs(torch.load, str(canary))}, "would call torch.serialization.load"),
        "a large bytearray": ({"m": Runs(bytearray, 1 << 40)}, "would call (builtins|__builtin__).bytearray"),
        "a large tensor": ({"m": Runs(torch.Tensor, 1 << 40)}, "would call torch.Tensor"),
        "a module": (nn.Linear(2, 2), "instruction NEWOBJ|would call"),
        "a set": ({"m": {1, 2}}, "would call (builtins|__builtin__).set|instruction EMPTY_SET"),
        "complex numbers": ({"m": torch.ones(2, dtype=torch.complex64)}, "a storage of the pickle is of an unknown"),
        "quantised": ({"m": torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8)}, "would call|unknown kind"),
        "sparse": ({"m": torch.eye(3).to_sparse()}, "would call"),
        "a list": ([torch.ones(2)], "does not hold a dictionary"),
        "a tensor": (torch.ones(2), "does not hold a dictionary"),
        "numbers for names of modules": ({"m": {"n": {(1, 2): 3}}}, "a key is of type tuple"),
        "a repeated number": ({"m": torch.ones(1).expand(1000, 1000)}, "repeats its numbers"),
        "gaps both ways": ({"m": torch.ones(20, 20)[::2, ::2]}, "gaps in both directions"),
    }  # fmt: skip


@pytest.mark.parametrize("name", hostile("x"))
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_file_is_run(name, protocol, tmp_path, recwarn):
    canary = tmp_path / "canary"
    contents, message = hostile(canary)[name]
    path = saved(tmp_path, contents, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=message) as raised:
        open_torch_file(path)
    assert str(path) in str(raised.value) and not canary.exists()


@pytest.mark.parametrize("protocol", range(5))
def test_a_bare_pickle_is_not_run(protocol, tmp_path):
    path, canary = tmp_path / "a.pt", tmp_path / "canary"
    path.write_bytes(pickle.dumps(Runs(os.system, f"touch {canary}"), protocol))
    with pytest.raises(ValueError, match="is not a readable zip archive"):
        open_torch_file(path)
    assert not canary.exists()


def test_the_older_format_is_named(tmp_path):
    path = saved(tmp_path, {"m": matrix()}, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="that torch.save wrote before 1.6"):
        open_torch_file(path)


def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 3), torch.ones(1, 2)), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="is packed"):
        open_torch_file(tmp_path / "a.pt")


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The archive with its members changed: a dictionary of bytes by name."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    change(members)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def pickle_replaced(old, new):
    def change(members):
        assert old in members["a/data.pkl"]
        members["a/data.pkl"] = members["a/data.pkl"].replace(old, new)

    return change


CHANGES = {
    "no pickle": (lambda m: m.pop("a/data.pkl"), "there is no data.pkl"),
    "two pickles": (lambda m: m.update({"b/data.pkl": b""}), "there is no data.pkl"),
    "a member beside": (lambda m: m.update({"other": b""}), "lie beside the folder 'a/'"),
    "a member above": (lambda m: m.update({"a/../../x": b""}), "points outside of the archive"),
    "no storage": (lambda m: m.pop("a/data/0"), "a storage of 91 numbers is not in the archive"),
    "a short storage": (lambda m: m.update({"a/data/0": bytes(90 * 4)}), "has another size there"),
    "a long storage": (lambda m: m.update({"a/data/0": bytes(92 * 4)}), "has another size there"),
    "big-endian": (lambda m: m.update({"a/byteorder": b"big"}), "big-endian"),
    "a large pickle": (lambda m: m.update({"a/data.pkl": bytes(5 << 20)}), "too many for a dictionary of tensors"),
    "an empty pickle": (lambda m: m.update({"a/data.pkl": b""}), "pickle"),
    "text for a pickle": (lambda m: m.update({"a/data.pkl": b"hello"}), "pickle|opcode"),
    "half a pickle": (lambda m: m.update({"a/data.pkl": m["a/data.pkl"][:50]}), "pickle"),
    "a larger shape": (pickle_replaced(b"K\x0dK\x07", b"K\x0eK\x07"), "reaches beyond its storage of 91 numbers"),
    "a larger offset": (pickle_replaced(b"QK\x00K\x0d", b"QK\x01K\x0d"), "reaches beyond its storage of 91 numbers"),
    "no strides": (pickle_replaced(b"K\x07K\x01\x86", b"K\x00K\x00\x86"), "repeats its numbers"),
    "another storage": (pickle_replaced(b"FloatStorage", b"ComplexFloatStorage"), "of an unknown kind"),
    "another function": (pickle_replaced(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"), "would call torch._utils"),
}  # fmt: skip


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_archives_that_torch_did_not_write_are_refused(change, message, tmp_path):
    path = rewritten(saved(tmp_path, {"m": matrix()}), change)
    with pytest.raises(ValueError, match=message) as raised:
        open_torch_file(path)
    assert str(path) in str(raised.value)


def test_packed_archives_are_refused(tmp_path):
    path = rewritten(saved(tmp_path, {"m": matrix()}), lambda members: None, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is packed; torch.save packs nothing"):
        open_torch_file(path)


def test_every_truncation_is_refused(tmp_path):
    path = saved(tmp_path, {"m": matrix()})
    whole = path.read_bytes()
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a readable zip archive"):
            open_torch_file(path)


def test_a_key_twice_is_refused():
    data = pickle.dumps({"a": 1, "b": 2}, 2).replace(b"X\x01\x00\x00\x00b", b"X\x01\x00\x00\x00a")
    with pytest.raises(ValueError, match="the key 'a' stands in it twice"):
        read_pickle(data)


@pytest.mark.parametrize("count", [30, 3000])
def test_values_that_hold_themselves_many_times_take_no_time(count):
    """A pickle of a few bytes that says (x, x) again and again would take for ever to print, hash or compare."""
    stream = io.BytesIO()
    stream.write(b"\x80\x02}X\x01\x00\x00\x00a)" + b"q\x00h\x00\x86" * count + b"s.")
    assert list(read_pickle(stream.getvalue())) == ["a"]
