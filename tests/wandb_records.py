"""What is in an offline file of W&B, read by hand: a reference that shares no code with what is tested."""

from __future__ import annotations

import json
import struct

from wandb.proto.wandb_internal_pb2 import Record


def read_wandb(path):
    """History rows, and the pictures among them, from an offline file of W&B."""
    history = []
    for data in leveldb_records(path.read_bytes()[7:]):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    return history, [row for row in history if "gradients/filenames" in row]


def leveldb_records(log):
    """LevelDB's log format: blocks of 32 KiB (the first has W&B's header of 7 bytes); a record may span several."""
    position, whole = 0, b""
    while position + 7 <= len(log):
        left = 32768 - (position + 7) % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", log[position + 4 : position + 7])
        whole += log[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or its last part
            yield whole
            whole = b""
