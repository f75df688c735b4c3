"""Digests that show whether stored data is what was written.

A sealed text is canonical JSON that carries the SHA-256 of itself (with that field empty) and of
the name it stands for: a record under another key does not fit, nor does one with a changed digit.
Tensors have a digest of their own, which the sealed text beside them holds.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from regrow.errors import short

if TYPE_CHECKING:  # whoever reads records alone does not wait for torch
    from torch import Tensor

DIGEST = "digest"
CHUNK_BYTES = 1 << 20
KINDS = {  # of tensors, as their files and as PyTorch name them
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "BOOL": "bool",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}
MOST_BYTES = 32 << 20  # the longest record here, of 1,000 epochs, has 100 kB


def canonical_json(value: object) -> str:
    """Write JSON the one way: sorted keys, no spaces, floats by repr, ASCII, numbers finite.

    >>> canonical_json({"b": (1, 0.1), "a": None})
    '{"a":null,"b":[1,0.1]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sealed(value: Mapping[str, Any], name: str, *, under: str | None = None) -> str:
    """Write a mapping as canonical JSON with its digest, in itself or in the mapping ``under``.

    >>> unsealed(sealed({"a": 1}, "x").encode(), "x")
    {'a': 1}
    """
    digest = _digest(name, canonical_json(_with(value, "", under)).encode())
    return canonical_json(_with(value, digest, under))


def unsealed(text: bytes, name: str, *, under: str | None = None) -> dict[str, Any]:
    """Return what was sealed under a name; a ``ValueError`` says why it is not that."""
    value = parsed(text)
    holder = value if under is None else value.get(under)
    digest = holder.pop(DIGEST, None) if isinstance(holder, dict) else None
    if not isinstance(digest, str) or not digest:
        raise ValueError("it carries no digest: it was altered, or written by an earlier regrow")
    if _digest(name, text.replace(digest.encode(), b"", 1)) != digest:
        raise ValueError(
            "its digest does not match its content: it was altered after it was written"
        )
    if under is not None and not value[under]:
        del value[under]
    return value


def parsed(text: bytes) -> dict[str, Any]:
    """Read JSON that may be anything; what is no mapping is a ``ValueError`` of one line."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:  # also of bytes that are no text, and of endless numbers
        raise ValueError(f"it is not JSON ({short(error)})") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def read_file(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Read a small file; a pipe, a folder or too long a file is a ``ValueError``."""
    # A pipe that nobody writes to must not hold the reader.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("it is not a file")
        # What it says of its length decides how much is asked for at once, and not where it ends.
        step = max(state.st_size + 1, 4096)
        parts, left = [], most + 1
        while left and (part := os.read(handle, min(step, left))):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(handle)
    if not left:
        raise ValueError(f"it is longer than {most:,} bytes")
    return b"".join(parts)


def digest_of(tensors: "Mapping[str, Tensor]") -> str:
    """Digest names, kinds, shapes and values of tensors."""
    import torch

    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def digest_of_file(path: Path) -> tuple[str, str]:
    """Digest the tensors of a file as ``digest_of`` does, with the text beside them.

    It takes neither PyTorch nor memory. A ``ValueError`` says why it is no file of tensors.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a file")
    try:
        with safe_open(path, framework="np") as checked:  # what its head says fits its length
            text = (checked.metadata() or {}).get("meta", "")
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"it is not a file of tensors ({short(error)})") from error
    sha = hashlib.sha256()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length))
        head.pop("__metadata__", None)
        for name in sorted(head):
            begin, end = head[name]["data_offsets"]
            kind, shape = KINDS[head[name]["dtype"]], tuple(head[name]["shape"])
            sha.update(f"{name!r} torch.{kind} {shape}\n".encode())
            file.seek(8 + length + begin)
            for start in range(begin, end, CHUNK_BYTES):
                sha.update(file.read(min(CHUNK_BYTES, end - start)))
    return sha.hexdigest(), text


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", *, meta: str | None = None) -> None:
    """Write tensors, and a text beside them, to a file that is on the disk afterwards."""
    from safetensors.torch import save_file

    # One metadata entry only: the order of several is not deterministic in the file.
    save_file(_separate(tensors), path, metadata=None if meta is None else {"meta": meta})
    sync(path)


def load_tensors(path: Path) -> "tuple[dict[str, Tensor], str]":
    """Read tensors and the text beside them; a ``ValueError`` says why it is no such file."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe must not hold the reader
        raise ValueError("it is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            # Copies, for the file's own pages change with the file.
            tensors = {name: file.get_tensor(name).clone() for name in names}
            return tensors, (file.metadata() or {}).get("meta", "")
    except (
        *(SafetensorError, ValueError, KeyError, TypeError, RuntimeError, MemoryError),
    ) as error:
        raise ValueError(f"it is not a file of tensors ({short(error)})") from error


def write_synced(path: Path, text: str) -> None:
    """Write a text to a file that is on the disk afterwards."""
    with path.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _separate(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Bring tensors to the CPU, contiguous, no two on one storage: all that the format can hold."""
    separate: dict[str, Tensor] = {}
    storages = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def _with(value: Mapping[str, Any], digest: str, under: str | None) -> dict[str, Any]:
    if under is None:
        return {**value, DIGEST: digest}
    return {**value, under: {**value.get(under, {}), DIGEST: digest}}


def _digest(name: str, text: bytes) -> str:
    return hashlib.sha256(name.encode() + b"\n" + text).hexdigest()
