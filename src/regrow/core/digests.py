"""Digests that detect whether stored data was changed.

A sealed text is canonical JSON that contains the SHA-256 of its name (the job's key) and its own
content with the digest field empty: a record moved to another key fails the check, as does one with
a changed digit. Tensors have a separate digest, which is stored in the sealed text beside them.
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

if TYPE_CHECKING:  # reading records alone does not need torch, which is slow to import
    from torch import Tensor

DIGEST = "digest"
CHUNK_BYTES = 1 << 20
KINDS = {  # dtypes, from safetensors' names to PyTorch's
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
MOST_BYTES = 32 << 20  # the longest record so far, of 1,000 epochs, has 100 kB


def canonical_json(value: object) -> str:
    """Write JSON in a unique form: sorted keys, no spaces, floats by repr, ASCII, finite numbers.

    >>> canonical_json({"b": (1, 0.1), "a": None})
    '{"a":null,"b":[1,0.1]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sealed(value: Mapping[str, Any], name: str, *, under: str | None = None) -> str:
    """Write a mapping as canonical JSON with its digest at the top level or in its field ``under``.

    >>> unsealed(sealed({"a": 1}, "x").encode(), "x")
    {'a': 1}
    """
    digest = _digest(name, canonical_json(_with(value, "", under)).encode())
    return canonical_json(_with(value, digest, under))


def unsealed(text: bytes, name: str, *, under: str | None = None) -> dict[str, Any]:
    """Return the mapping that was sealed under a name; raise ``ValueError`` if it was changed."""
    value = parsed(text)
    holder = value if under is None else value.get(under)
    digest = holder.pop(DIGEST, None) if isinstance(holder, dict) else None
    if not isinstance(digest, str) or not digest:
        raise ValueError("it has no digest: it was altered, or an earlier version wrote it")
    if _digest(name, text.replace(digest.encode(), b"", 1)) != digest:
        raise ValueError(
            "its digest does not match its content: it was altered after it was written"
        )
    if under is not None and not value[under]:
        del value[under]
    return value


def parsed(text: bytes) -> dict[str, Any]:
    """Parse untrusted JSON; raise a ``ValueError`` with a one-line message unless a mapping."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:  # also invalid UTF-8, and integers with too many digits
        raise ValueError(f"it is not JSON ({short(error)})") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def read_file(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Read a small file; raise ``ValueError`` for a pipe, a folder or a file that is too long."""
    # Non-blocking, because opening a pipe without a writer would block.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("it is not a file")
        # The reported size sets how much is read at once, but not where reading ends.
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
    """Return the digest of the tensors' names, dtypes, shapes and values."""
    import torch

    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def digest_of_file(path: Path) -> tuple[str, str]:
    """Return the digest of a file's tensors, as ``digest_of`` does, and the text stored with them.

    Needs neither PyTorch nor memory for whole tensors. Raises ``ValueError`` if it is not a valid
    file of tensors.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a file")
    try:
        with safe_open(path, framework="np") as checked:  # checks its header against its length
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
    """Write tensors, and a text with them, to a file, and sync it to disk."""
    from safetensors.torch import save_file

    # One metadata entry only: the order of several is not deterministic in the file.
    save_file(_separate(tensors), path, metadata=None if meta is None else {"meta": meta})
    sync(path)


def load_tensors(path: Path) -> "tuple[dict[str, Tensor], str]":
    """Read tensors and the text stored with them; raise ``ValueError`` if the file is invalid."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe could block
        raise ValueError("it is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            # Copied, because memory-mapped tensors would change with the file.
            tensors = {name: file.get_tensor(name).clone() for name in names}
            return tensors, (file.metadata() or {}).get("meta", "")
    except (
        *(SafetensorError, ValueError, KeyError, TypeError, RuntimeError, MemoryError),
    ) as error:
        raise ValueError(f"it is not a file of tensors ({short(error)})") from error


def write_synced(path: Path, text: str) -> None:
    """Write a text to a file, and sync it to disk."""
    with path.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _separate(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Make tensors contiguous on the CPU with separate storages, as safetensors requires."""
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
