"""Arrays of .npz archives: equal to numpy's, read in place, no trust in headers."""

import io
import zipfile

import numpy as np
import pytest
import torch

from sparsesteer.loaders.containers.npz import open_npz
from sparsesteer.storage import StoredTensor

pytestmark = pytest.mark.usefixtures("one_thread")

FLOATS = (np.float64, np.float32, np.float16)
OTHERS = (np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_)


def array(shape, dtype, order="C"):
    values = np.random.default_rng(0).standard_normal(shape) * 10
    return np.asarray(values, dtype=dtype, order=order)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [*FLOATS, *OTHERS], ids=lambda d: d.__name__)
@pytest.mark.parametrize("shape", [(), (5,), (1, 7), (7, 1), (13, 7), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=lambda f: f.__name__)
def test_arrays_equal_numpys(shape, dtype, order, save, tmp_path):
    want = array(shape, dtype, order)
    save(tmp_path / "a.npz", other=np.ones(3), m=want)
    got = open_npz(tmp_path / "a.npz")["m"]
    assert isinstance(got, StoredTensor) == (save is np.savez)
    loaded = got.load() if isinstance(got, StoredTensor) else got
    assert torch.equal(loaded, torch.from_numpy(np.ascontiguousarray(want)).reshape(shape))


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_and_columns_equal_indexing(order, tmp_path):
    want = array((13, 7), np.float32, order)
    np.savez(tmp_path / "a.npz", m=want)
    stored, indices = open_npz(tmp_path / "a.npz")["m"], torch.tensor([6, 0, 3, 3])
    assert torch.equal(stored.rows(indices), torch.from_numpy(want[indices.numpy()]))
    assert torch.equal(stored.columns(indices), torch.from_numpy(np.ascontiguousarray(want[:, indices.numpy()].T)))


def npy(header, data=b"", version=(1, 0)):
    """An .npy file with any text for a header."""
    text = header.encode() if isinstance(header, str) else header
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2, "little") + text + data


def described(descr="<f4", shape="(2, 3)", fortran="False"):
    return f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def object_array():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


LIES = {
    "objects": (object_array(), "is not read; floating point numbers are"),
    "complex": (npy(described("<c8"), bytes(48)), "complex64 is not read"),
    "big-endian": (npy(described(">f4"), bytes(24)), "is not read"),
    "text": (npy(described("<U3"), bytes(72)), "is not read"),
    "records": (npy(described([("a", "<f4")]), bytes(24)), "is not read"),
    "bfloat16 of ml_dtypes": (npy(described("|V2"), bytes(12)), "is not read"),
    "too few bytes": (npy(described(), bytes(20)), "does not take"),
    "too many bytes": (npy(described(), bytes(28)), "does not take"),
    "shape beyond any file": (npy(described(shape="(4611686018427387904, 4)"), bytes(24)), "does not take"),
    "negative shape": (npy(described(shape="(-2, -3)"), bytes(24)), "not one of whole numbers"),
    "shape of floats": (npy(described(shape="(2.0, 3)"), bytes(24)), "not readable as an array"),
    "shape of booleans": (npy(described(shape="(True, 6)"), bytes(24)), "not one of whole numbers"),
    "no shape": (npy("{'descr': '<f4', 'fortran_order': False}\n", bytes(24)), "not readable as an array"),
    "a call in the header": (npy("__import__('os').system('true')\n", bytes(24)), "not readable as an array"),
    "nested without end": (npy("(" * 9000, bytes(24)), "not readable as an array"),
    "long header": (npy(described() + " " * 20_000, bytes(24)), "not readable as an array"),
    "version 3": (npy(described(), bytes(24), (3, 0)), r"version \(3, 0\)"),
    "no header": (b"", "not readable as an array"),
    "cut in the header": (npy(described())[:30], "not readable as an array"),
    "a pickle": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "not readable as an array"),
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "packed"])
@pytest.mark.parametrize("data, message", LIES.values(), ids=LIES)
def test_lying_arrays_are_refused(data, message, compression, tmp_path):
    path = archive(tmp_path / "a.npz", {"m.npy": data}, compression)
    with pytest.raises(ValueError, match=message) as raised:
        open_npz(path)
    assert str(path) in str(raised.value)


GOOD = npy(described(), bytes(24))
NAMES = {
    "above": ("../m.npy", "points outside of the archive"),
    "absolute": ("/etc/m.npy", "points outside of the archive"),
    "above, backwards": ("..\\m.npy", "points outside of the archive|is no array"),
    "in a folder": ("a/m.npy", "is no array"),
    "of another kind": ("m.pkl", "is no array"),
}


@pytest.mark.parametrize("name, message", NAMES.values(), ids=NAMES)
def test_members_that_are_no_plain_arrays_are_refused(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_npz(archive(tmp_path / "a.npz", {name: GOOD}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m.npy", GOOD)
        file.writestr("m.npy", GOOD)
    with pytest.raises(ValueError, match="share a name"):
        open_npz(path)


def test_a_bomb_is_not_unpacked(tmp_path):
    """256 MiB of zeros in 260 KB."""
    path, count = tmp_path / "a.npz", 1 << 26
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("m.npy", "w") as member:
        member.write(npy(described(shape=f"({count},)")))
        for _ in range(count * 4 >> 20):
            member.write(bytes(1 << 20))
    with pytest.raises(ValueError, match=r"they unpack to \d+ bytes, more than the \d+ allowed"):
        open_npz(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packings_are_refused(method, tmp_path):
    with pytest.raises(ValueError, match="packed by a method that is not read"):
        open_npz(archive(tmp_path / "a.npz", {"m.npy": GOOD}, method))


def test_damaged_packed_bytes_are_noticed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, m=array((64, 64), np.float32))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not readable as an array"):
        open_npz(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=lambda f: f.__name__)
def test_every_truncation_is_refused(save, tmp_path):
    path = tmp_path / "a.npz"
    save(path, a=array((5,), np.float32), m=array((5, 4), np.float32))
    whole = path.read_bytes()
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a readable zip archive"):
            open_npz(path)


def test_members_that_overlap_are_refused(tmp_path):
    path = archive(tmp_path / "a.npz", {"a.npy": GOOD, "b.npy": GOOD})
    data = bytearray(path.read_bytes())
    first, second = (data.rfind(name) for name in (b"a.npy", b"b.npy"))
    assert first < second  # both in the directory, 46 bytes behind the beginnings of their entries
    data[second : second + 5] = b"a.npy"
    data[second - 4 : second] = data[first - 4 : first]
    path.write_bytes(data)
    with pytest.raises(ValueError, match="overlaps the one before it"):
        open_npz(path)


def test_a_member_that_is_not_where_the_directory_says_is_refused(tmp_path):
    path = archive(tmp_path / "a.npz", {"a.npy": GOOD})
    data = bytearray(path.read_bytes())
    data[0:2] = b"QQ"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not where the archive's directory says"):
        open_npz(path)
