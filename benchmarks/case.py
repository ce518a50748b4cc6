"""One shape of one op, what it must move and compute at least, and what this machine needs for that."""

from dataclasses import dataclass

import torch

from sparsesteer._layout import N_COLUMNS
from sparsesteer.benchmarks import machine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = ((576, 4608), (2304, 16384), (2304, 65536), (3584, 131072), (4096, 32768), (4096, 131072))
TOKENS = (1, 8, 32, 128, 512, 4096)
GROUP = 128  # columns that share a scale in the int8 copy of an encoder
CODE_BYTES = 8  # a value and an index


@dataclass(frozen=True)
class Case:
    """Letters as everywhere; a size that an op does not have is 0."""

    op: str
    D: int
    F: int
    N: int
    M: int = 0  # edited features, of each slot for ``steer_slots``
    K: int = 0  # active features of a token: exactly for "topk", on average for "jumprelu"
    S: int = 0  # slots
    dtype: str = "fp32"  # of h
    row_dtype: str = "fp32"  # of encoder and decoder
    activation: str = "jumprelu"

    def __str__(self) -> str:
        sizes = " ".join(f"{letter}={getattr(self, letter)}" for letter in "DFNMKS" if getattr(self, letter))
        return f"{self.op} {sizes} {self.activation} {self.dtype}"

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products with encoder and decoder rows."""
        encoded, decoded = {
            "steer": (self.M, self.M),
            "steer_slots": (self.M, self.M),
            "activations": (self.M, 0),
            "activations_topk": (self.F, 0),
            "encode": (self.F, 0),
            "encode_screened": (self.F, 0),
            "decode": (0, self.K),
            "steer_topk": (self.F, self.M),
            "steer_reconstruct": (self.F, self.K),
        }[self.op]
        return 2 * self.N * self.D * (encoded + decoded)

    @property
    def n_bytes(self) -> int:
        """Everything that is read or written, once: rows, tables, h, codes, the result."""
        return self.row_bytes + self.token_bytes

    @property
    def row_bytes(self) -> int:
        """Of the encoder, the decoder and their tables."""
        row = self.D * DTYPES[self.row_dtype].itemsize
        decoded_rows = min(self.N * self.K, self.F) * row
        plan = self.M * (2 * row + N_COLUMNS * 4)
        return {
            "steer": plan,
            "activations": self.M * (row + N_COLUMNS * 4),
            "activations_topk": self.F * row + self.M * N_COLUMNS * 4,
            "steer_slots": min(self.S, self.N) * plan,
            "encode": self.F * row,
            "encode_screened": self.F * (self.D + 4 * (-(-self.D // GROUP)) + 4),
            "decode": decoded_rows,
            "steer_topk": self.F * row + plan,
            "steer_reconstruct": self.F * row + decoded_rows,
        }[self.op]

    @property
    def token_bytes(self) -> int:
        """Of h, the result, codes and slots."""
        h = self.N * self.D * DTYPES[self.dtype].itemsize
        codes = self.N * self.K * CODE_BYTES
        return {
            "activations": h + self.N * self.M * 4,
            "activations_topk": h + self.N * self.M * 4,
            "encode": h + codes,
            "encode_screened": h + codes,
            "decode": codes + self.N * self.D * 4,
            "steer_slots": 2 * h + 4 * self.N,
        }.get(self.op, 2 * h)

    @property
    def dense_bytes(self) -> int:
        """Of a tensor N x F in fp32, which no op makes."""
        return 4 * self.N * self.F

    def limit_us(self, device: str, cache: str) -> float:
        """What the slower of memory and arithmetic needs at this machine's measured rates."""
        if cache == "hot":
            seconds = self.n_bytes / machine.bandwidth(device, self.n_bytes)
        else:
            rows = self.row_bytes / machine.bandwidth(device, machine.MEMORY_BYTES)
            seconds = rows + self.token_bytes / machine.bandwidth(device, self.token_bytes)
        rate = machine.matmul_rate(device, DTYPES[self.row_dtype])
        return 1e6 * max(seconds, self.flops / rate)
