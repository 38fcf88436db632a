"""How a variable is cut into chunks (the unit that is read) and shards (the unit that is written, one file)."""

from __future__ import annotations

import math
from collections.abc import Sequence

CHUNK_BYTES = 64 << 10
SMALL_FRAME_BYTES = 16 << 10
LARGE_FRAME_BYTES = 16 << 20
SHARD_BYTES = 16 << 20


def chunks_and_shards(shape: Sequence[int], item: int, *, time: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk and shard shapes of an array ``(group, time, ...)`` or ``(group, ...)`` with `item` bytes a value.

    A chunk is one time frame of one group if that has 16 KiB to 16 MiB; smaller frames are joined along time up to
    64 KiB, larger ones are split in space. A shard is whole chunks up to about 16 MiB: along space, time, group.

    >>> chunks_and_shards((100, 21, 64, 64), 4, time=True)
    ((1, 1, 64, 64), (48, 21, 64, 64))
    >>> chunks_and_shards((1, 17420, 7), 4, time=True)
    ((1, 2340, 7), (1, 18720, 7))
    """
    frame = math.prod(shape[2 if time else 1:]) * item
    if not time:
        count = max(1, min(shape[0], CHUNK_BYTES // max(frame, 1)))
        chunk = [count, *_split(shape[1:], item)]
    elif frame < SMALL_FRAME_BYTES:
        chunk = [1, max(1, min(shape[1], CHUNK_BYTES // max(frame, 1))), *shape[2:]]
    else:
        chunk = [1, 1, *_split(shape[2:], item)]
    return tuple(chunk), _grow(chunk, shape, item)


def _split(shape: Sequence[int], item: int) -> list[int]:
    parts = [max(n, 1) for n in shape]
    while parts and math.prod(parts) * item > LARGE_FRAME_BYTES and max(parts) > 1:
        longest = max(range(len(parts)), key=lambda i: parts[i])
        parts[longest] = -(-parts[longest] // 2)
    return parts


def _grow(chunk: Sequence[int], shape: Sequence[int], item: int) -> tuple[int, ...]:
    shard = list(chunk)
    for axis in (*range(2, len(shape)), 1, 0):
        if axis >= len(shape):
            continue
        room = max(1, SHARD_BYTES // (math.prod(shard) * item))
        shard[axis] *= max(1, min(room, -(-shape[axis] // chunk[axis])))
    return tuple(shard)
