"""Where the registers of a program live: which buffer each `Combine` writes to.

A register is alive from the instruction that writes it to its last reader. Walking through the program once,
the output of a Combine takes the buffer of an input that dies there (the step is then in place), else a free
one, else a new one: as many buffers as registers are alive at once, and no allocation in the loop. What the
network and other functions return is theirs; such a register only has a place in the table of addresses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdekit.samplers.plan import Apply, Combine, Evaluate, state

if TYPE_CHECKING:
    from sdekit.samplers.execute import Line

__all__ = ["Layout", "Step", "is_buffer", "layout"]


@dataclass(frozen=True)
class Step:
    """One instruction with its places, or one product of a state and a number.

    line: in the program. ins: None for the product. out, inputs: places of what is written and read.
    second: of scale out, -1 for none; scale is then the last weight. drawn: (place, draw) of noise that is
    held as a tensor, which are inputs too; draws: made in the pass. freed: places let go afterwards. node:
    reached here.
    """

    line: int
    ins: Evaluate | Combine | Apply | None
    out: int
    inputs: tuple[int, ...]
    weights: tuple[float, ...] = ()
    draws: tuple[int, ...] = ()
    drawn: tuple[tuple[int, int], ...] = ()
    second: int = -1
    freed: tuple[int, ...] = ()
    node: int | None = None


@dataclass(frozen=True)
class Layout:
    """The steps in order, how many places they use, and the one where the result lies.

    Even places are buffers, 0 that of the initial state; odd ones hold what others made.
    """

    steps: tuple[Step, ...]
    places: int
    output: int

    @property
    def buffers(self) -> int:
        """Buffers that the run writes to, the initial state's among them where it may be overwritten."""
        written = {step.out for step in self.steps} | {step.second for step in self.steps}
        return len({place for place in written if place >= 0 and is_buffer(place)})


def is_buffer(place: int) -> bool:
    """Whether a place is memory of the run."""
    return place % 2 == 0


class _Places:
    """Places of one parity, handed out and taken back."""

    def __init__(self, first: int) -> None:
        self.next, self.free = first, list[int]()

    def take(self) -> int:
        if self.free:
            return self.free.pop()
        self.next += 2
        return self.next - 2


def layout(
    lines: Sequence[Line],
    output: str,
    *,
    scales: Mapping[int, float],
    in_pass: bool,
    reused: AbstractSet[int],
) -> Layout:
    """Places for every register of a program.

    scales: line of an Evaluate -> the factor of the state that its network is given, where it is not given
    the state itself: a second output of the pass that writes the state. in_pass: draws are made in the pass
    that adds them, but for those of an instruction that reads one of ``reused``, which others read too.
    """
    buffers, others = _Places(0), _Places(1)
    where = {state(0): buffers.take()}
    seconds = _seconds(lines, scales)
    scaled: dict[int, int] = {}  # an Evaluate's line -> the place of its input
    steps: list[Step] = []

    def free(places: Sequence[int]) -> None:
        for place in places:
            (buffers if is_buffer(place) else others).free.append(place)

    for k, line in enumerate(lines):
        ins = line.ins
        inputs = tuple(where[name] for name in ins.inputs)
        dying = [where.pop(name) for name in line.dead if name in where]
        done = list(dying)
        if isinstance(ins, Combine):
            numbers = [draw for _, draw in ins.noise]
            made = in_pass and reused.isdisjoint(numbers)
            drawn = () if made else tuple((others.take(), draw) for draw in numbers)
            weights = line.weights
            second = -1
            if k in seconds:
                second = scaled[seconds[k]] = buffers.take()
                weights = (*weights, scales[seconds[k]])
            in_place = next((place for place in dying if is_buffer(place)), None)
            if in_place is None:
                out = buffers.take()
            else:
                out = in_place
                done.remove(out)
            done += [place for place, _ in drawn]
            inputs += tuple(place for place, _ in drawn)
            draws = tuple(numbers) if made else ()
        else:
            weights, draws, drawn, second = (), (), (), -1
            if k in scales:
                if k not in scaled:  # no Combine wrote this state just before
                    scaled[k] = buffers.take()
                    steps.append(Step(k, None, scaled[k], inputs, (scales[k],)))
                inputs = (scaled[k],)
                done.append(scaled[k])
            out = others.take()
        if ins.out in line.dead:  # nobody reads it
            done.append(out)
        else:
            where[ins.out] = out
        free(done)
        freed = tuple(place for place in done if not is_buffer(place))
        steps.append(Step(k, ins, out, inputs, weights, draws, drawn, second, freed, line.node))
    return Layout(tuple(steps), max(buffers.next, others.next), where[output])


def _seconds(lines: Sequence[Line], scales: Mapping[int, float]) -> dict[int, int]:
    """Line of a Combine -> line of the next Evaluate, where that one is given the Combine's output scaled."""
    found: dict[int, int] = {}
    latest: dict[str, int] = {}
    for k, line in enumerate(lines):
        if isinstance(line.ins, Combine):
            latest[line.ins.out] = k
        elif isinstance(line.ins, Evaluate):
            if k in scales and line.ins.x in latest:
                found[latest[line.ins.x]] = k
            latest.clear()
    return found
