"""What fuzzing begins with: files as they are really written."""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict

from autoresume.checkpoint.incarnation import Incarnation
from autoresume.format.digest import canonical
from autoresume.format.manifest import Manifest, entry_of
from autoresume.format.names import CheckpointName
from autoresume.format.part import Chunk, File, Labels, Part, PartHead, chunks_json, part_bytes

NAME = CheckpointName(step=20, incarnation=1, epoch=0, samples=160)
TREE = {
    "model": {"w": {"$": "tensor", "key": "model/w"}},
    "run": {"step": 20, "big": {"$": "int", "value": "12"}, "pair": {"$": "tuple", "items": [1, None, 2.5, "x"]}},
}


def _part() -> bytes:
    head = PartHead(
        run_id="0123456789ab",
        checkpoint=NAME,
        rank=0,
        world_size=1,
        time=1700000000.0,
        shard=File("shards/rank-00000.safetensors", 4106, 8388608, ("e8334405c8061c6bf11abf7eafbc096a",)),
        attachments={"env": File("pickles/rank-00000-env.pkl", 9, 8388608, ("0" * 32,))},
        labels=Labels({"loss": 0.5}, ("good",)),
    )
    chunks = (Chunk("model/w", "float32", (4, 2), (0, 0), (4, 2), True, 96),)
    return part_bytes(head, chunks_json(chunks), canonical(TREE), {"step": 20})


def _manifest() -> bytes:
    part = _part()
    made = Manifest("0123456789ab", NAME, 1, 1700000000.0, (entry_of(PartHead.from_bytes(part), part),), Labels({}, ()))
    assert Part.from_bytes(part).rank == 0
    return made.to_bytes()


def of(target: str) -> list[bytes]:
    if target == "manifest":
        whole = _manifest()
        return [whole, whole[: whole.rindex(b',"digest"')] + b"}"]
    if target == "part":
        return [_part()]
    if target == "tree":
        return [
            json.dumps(TREE).encode(),
            b'{"a": {"$": "dict", "items": [["b", 1]]}, "f": {"$": "float", "value": "nan"}}',
        ]
    if target == "incarnation":
        made = Incarnation(3, "0123456789ab", "host", "boot", [(12, 1.5)], 2, ["train.py"], {"id": "7"}, {"step": 5})
        return [made.to_bytes()]
    if target == "metrics":
        lines = [{"step": step, "time": 1.0, "values": {"loss": 0.5, "bad": {"float": "nan"}}} for step in range(3, 9)]
        return [b"".join(json.dumps(line).encode() + b"\n" for line in lines)]
    if target == "name":
        return [str(NAME).encode(), b"E0_U0_S0-0001"]
    file = io.BytesIO()
    pickle.Pickler(file, 2).dump(OrderedDict(model={"w": [1, 2.5, "x"], "b": (True, None)}, step=3))
    return [file.getvalue(), pickle.dumps({1: {2: [3]}, "s": {4, 5}}, 4)]
