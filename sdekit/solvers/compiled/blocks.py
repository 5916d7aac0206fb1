"""Which Philox blocks the steps of a kernel need, and the code that makes their normals.

Words and normals are made for 32 of the 64 paths at a time, and first the words of all: what a loop waits for
was begun a loop earlier.
"""

from __future__ import annotations

from math import lcm

__all__ = ["blocks"]


def blocks(event: int, normals: int) -> tuple[int, int, list[str]]:
    """(steps that share blocks, 64-wide rows of normals, code that fills them before step k).

    Row (k mod steps) * normals * width + j * width + e is element e of draw k * normals + j.
    """
    if event < 4:
        width = 4 if event == 3 else event
        shared = 4 // width
        steps = lcm(normals, shared) // normals
        count, used = steps * normals // shared, 3 if event == 3 else 4
        found = [
            (f"(k // {steps}) * {count} + {b}", "0", [4 * b + w if w < used else -1 for w in range(4)])
            for b in range(count)
        ]
    else:
        lanes, steps, width = -(-event // 4), 1, event
        found = [
            (str(lane), f"k * {normals} + {j}", [j * event + e if e < event else -1 for e in elements])
            for j in range(normals)
            for lane in range(lanes)
            for elements in [[lanes * w + lane for w in range(4)]]
        ]
    lines: list[str] = []
    latest = "0"
    for c0, c1, slots in found:
        if c1 != latest:
            lines += [
                f"c_1 = U({c1})",
                "for p in range(many):",
                "    store(ready, p, product_0(load(low, p), c_1, k0))",
            ]
            latest = c1
        lines += [
            f"c_0 = U({c0})",
            "for p in range(0, many, 32):",
            "    words_of_32(offset(word, p), offset(low, p), offset(ready, p), c_0, high, k0, k1)",
        ]
        places = [f"offset(z, {64 * slot} + p)" if slot >= 0 else "spare" for slot in slots]
        if max(slots[2:]) < 0:
            made = f"pairs(pair, offset(word, p), offset(word, 64 + p), {places[0]}, {places[1]}, 32)"
        else:
            made = f"normals_of_32(offset(word, p), 64, {', '.join(places)})"
        lines += ["for p in range(0, many, 32):", f"    {made}"]
    rows = steps * normals * width
    return steps, rows, lines
