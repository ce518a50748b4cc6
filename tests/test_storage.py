"""Rows and columns out of a file: equal to torch indexing, never the whole file, no trust in headers."""

import json
import os
import struct
from dataclasses import replace

import pytest
import torch
from peak_memory import run_alone
from safetensors.torch import save_file

from sparsesteer import storage
from sparsesteer.storage import open_safetensors

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def random_matrix(height, width, dtype):
    return torch.randn(height, width, generator=torch.Generator().manual_seed(height)).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("height, width", [(1, 1), (1, 17), (17, 1), (13, 7), (64, 33)])
@pytest.mark.parametrize("band_bytes", [1, 100, 1 << 20])
def test_rows_and_columns_equal_indexing(height, width, dtype, band_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BAND_BYTES", band_bytes)
    matrix, path = random_matrix(height, width, dtype), tmp_path / "m.safetensors"
    save_file({"before": torch.ones(3, dtype=torch.uint8), "m": matrix, "z": torch.ones(5)}, path)
    stored = open_safetensors(path)["m"]
    assert stored.shape == (height, width) and stored.dtype == dtype
    for count in (0, 1, 5):
        rows = torch.randint(height, (count,), generator=torch.Generator().manual_seed(count))
        columns = torch.randint(width, (count,), generator=torch.Generator().manual_seed(count))
        assert torch.equal(stored.rows(rows), matrix[rows])
        assert torch.equal(stored.columns(columns), matrix[:, columns].T) and stored.columns(columns).is_contiguous()
    assert torch.equal(stored.load(), matrix)


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("band_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("height, width, gap", [(13, 7, 0), (13, 7, 3), (1, 5, 0), (5, 1, 0), (5, 1, 2)])
def test_transposed_scaled_and_with_gaps(height, width, gap, band_bytes, dtype, factor, tmp_path, monkeypatch):
    """As torch would read the same strides; a factor gives fp32 at least."""
    monkeypatch.setattr(storage, "BAND_BYTES", band_bytes)
    whole, path = random_matrix(height, width + gap, dtype), tmp_path / "m.safetensors"
    save_file({"m": whole}, path)
    stored = replace(open_safetensors(path)["m"], shape=(height, width)).scaled(factor)
    want = whole[:, :width] if factor == 1 else whole[:, :width].float() * factor
    for matrix, torchs in ((stored, want), (stored.T, want.T)):
        assert matrix.shape == tuple(torchs.shape) and matrix.dtype == torchs.dtype
        assert torch.equal(matrix.load(), torchs)
        for picked, along in ((matrix.rows, torchs), (matrix.columns, torchs.T)):
            indices = torch.tensor([len(along) - 1, 0, 0])
            assert torch.equal(picked(indices), along[indices]) and picked(indices).is_contiguous()


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), (2, 3, 4)])
def test_load_of_every_shape_and_dtype(shape, dtype, tmp_path):
    tensor, path = torch.ones(shape).to(dtype), tmp_path / "t.safetensors"
    save_file({"t": tensor}, path)
    loaded = open_safetensors(path)["t"].load()
    assert loaded.dtype == dtype and torch.equal(loaded, tensor)


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_file({"m": torch.ones(100, 50), "other": torch.ones(1000, 50)}, path)
    read, preadv = [], os.preadv

    def counting(descriptor, buffers, position):
        read.append(preadv(descriptor, buffers, position))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counting)
    stored = open_safetensors(path)["m"]
    assert read == []
    stored.rows(torch.tensor([3, 99]))
    assert read == [200, 200]
    read.clear()
    monkeypatch.setattr(storage, "BAND_BYTES", 30 * 200)
    stored.columns(torch.tensor([3, 49, 3]))
    assert read == [6000, 6000, 6000, 2000]


def test_a_read_that_comes_in_pieces_is_put_together(tmp_path, monkeypatch):
    matrix, path, preadv = random_matrix(9, 11, torch.float32), tmp_path / "m.safetensors", os.preadv
    save_file({"m": matrix}, path)
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:7]], at))
    assert torch.equal(open_safetensors(path)["m"].load(), matrix)


@pytest.mark.parametrize("index", [-1, 5])
def test_rows_that_do_not_exist_raise(index, tmp_path):
    save_file({"m": torch.ones(5, 4), "z": torch.ones(100)}, tmp_path / "m.safetensors")
    with pytest.raises(IndexError, match="of a matrix of 5 rows"):
        open_safetensors(tmp_path / "m.safetensors")["m"].rows(torch.tensor([index]))


def test_a_file_that_shrinks_while_it_is_used_raises(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"m": torch.ones(50, 40)}, path)
    stored = open_safetensors(path)["m"]
    os.truncate(path, 4000)
    for read in (stored.load, lambda: stored.rows(torch.tensor([49])), lambda: stored.columns(torch.tensor([0]))):
        with pytest.raises(ValueError, match="ends early"):
            read()


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(5), "m": torch.ones(5, 4)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated|not readable as JSON"):
            open_safetensors(path)


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "offsets beyond the file": ({"a": entry(0, 8000, [2000])}, "truncated"),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, "b begins at byte"),
    "the same bytes twice": ({"a": entry(0, 8), "b": entry(0, 8)}, "b begins at byte"),
    "a hole": ({"a": entry(0, 8), "b": entry(12, 20)}, "b begins at byte"),
    "not from the start": ({"a": entry(4, 12)}, "a begins at byte"),
    "bytes left over": ({"a": entry(0, 8)}, "24 bytes follow the last tensor"),
    "no tensors but bytes": ({}, "32 bytes follow"),
    "negative offset": ({"a": entry(-8, 0)}, "not a whole number"),
    "negative shape": ({"a": entry(0, 32, [-2, -4])}, "not a whole number"),
    "shape of floats": ({"a": entry(0, 32, [8.0])}, "not a whole number"),
    "shape of booleans": ({"a": entry(0, 4, [True])}, "not a whole number"),
    "offsets backwards": ({"a": entry(8, 0)}, "does not take -8 bytes"),
    "too few bytes": ({"a": entry(0, 32, [9])}, "does not take 32 bytes"),
    "shape beyond any file": ({"a": entry(0, 32, [2**62, 2**62])}, "does not take 32 bytes"),
    "unknown dtype": ({"a": entry(0, 32, [8], "F3")}, "KeyError.'F3'"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 8, 32]}}, "not understood"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 32]}}, "not understood"),
    "entry as text": ({"a": "F32"}, "not understood"),
    "entry as a list": ({"a": []}, "not understood"),
    "dtype as a list": ({"a": {"dtype": [], "shape": [8], "data_offsets": [0, 32]}}, "not understood"),
    "a name twice": (b'{"a": 1, "a": 2}', "a name stands in it twice"),
    "a list": (b"[1, 2]", "should be a JSON object, got list"),
    "no JSON": (b"{ not json", "not readable as JSON"),
    "no text": (b"\xff\xfe\x00\xd8\xff", "not readable as JSON"),
    "nested without end": (b"[" * 200_000, "not readable as JSON"),
    "a number without end": (b'{"a": ' + b"9" * 10_000 + b"}", "not readable as JSON"),
}


@pytest.mark.parametrize("header, message", LIES.values(), ids=LIES)
def test_lying_headers_are_refused(header, message, tmp_path):
    path = write(tmp_path / "lie.safetensors", header, bytes(32))
    with pytest.raises(ValueError, match=message) as raised:
        open_safetensors(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**31, 2**63, 2**64 - 1])
def test_lying_header_lengths_are_refused(length, tmp_path):
    path = write(tmp_path / "lie.safetensors", {"a": entry(0, 8)}, bytes(8), length)
    with pytest.raises(ValueError, match="not a safetensors file, or is truncated"):
        open_safetensors(path)


def test_a_large_file_passes_through_a_band(tmp_path):
    """Peak memory over a sparse file of 128 MiB, and the answer, in a process of its own."""
    path, height, width = tmp_path / "sparse.safetensors", 4096, 8192
    header = json.dumps({"m": {"dtype": "F32", "shape": [height, width], "data_offsets": [0, height * width * 4]}})
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header.encode())
        start = file.tell()
        for row in (0, 4095):
            file.seek(start + 4 * (row * width + 77))
            file.write(struct.pack("<f", row + 1))
        file.truncate(start + height * width * 4)
    program = """
        import sys, torch
        from peak_memory import peak_kib
        from sparsesteer.storage import open_safetensors
        stored = open_safetensors(sys.argv[1])["m"]
        before = peak_kib()
        columns, rows = stored.columns(torch.tensor([77, 0])), stored.rows(torch.tensor([4095]))
        grown = peak_kib() - before
        assert columns[0, 0] == 1 and columns[0, -1] == 4096 and columns.sum() == 4097
        assert rows[0, 77] == 4096 and rows.sum() == 4096
        print(grown)
    """
    assert int(run_alone(program, str(path))) < 64 << 10  # a band of 16 MiB and what torch needs around it
