"""Records as bytes (JSON and safetensors), for machines without access to the store's folder.

The bytes are those of the record's files, so they carry the same digests.
"""

from typing import Any, NamedTuple

from regrow.core.digests import digest_of, read_file, unsealed
from regrow.errors import Damaged, StoreError
from regrow.store.store import TENSORS, TENSORS_FILE, TIMING, Store


class Packed(NamedTuple):
    """The bytes of a record's files; ``tensors`` is empty if it has none."""

    record: bytes
    tensors: bytes


def pack(store: Store, key: str) -> Packed:
    """Return the record of a finished job as bytes."""
    file = store.record_file(key)
    tensors = file.with_name(TENSORS_FILE)
    try:
        return Packed(read_file(file), tensors.read_bytes() if tensors.exists() else b"")
    except (OSError, ValueError) as error:
        raise StoreError(f"Cannot read {file}: {error}.") from error


def unpack(store: Store, key: str, packed: Packed) -> None:
    """Store a record received as bytes, unless it exists; raise ``Damaged`` if it was altered."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        record: dict[str, Any] = unsealed(packed.record, key, under=TIMING)
        tensors = load(packed.tensors) if packed.tensors else {}
        if record.pop(TENSORS, None) != (digest_of(tensors) if tensors else None):
            raise ValueError("its tensors are not those that were stored with its record")
    except (ValueError, SafetensorError) as error:
        raise Damaged(f"The record of job {key} was altered in transit: {error}.") from error
    store.commit(key, record, tensors)
