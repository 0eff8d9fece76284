"""The parts of the report, in the order of their worth: the last ones may be cut."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A function that measures, run in a process of its own.

    Attributes:
        name: name in the report.
        function: 'module:function'; called with a `Bench`.
        seconds: time limit, from the start of the function.
    """

    name: str
    function: str
    seconds: int


def _part(name: str, function: str, seconds: int) -> Part:
    return Part(name, f'mmattn.benchmarks.gpu.{function}', seconds)


PARTS = (
    _part('ceilings', 'ceilings:measure', 30),
    _part('compile-time', 'compile_time:measure', 50),
    _part('criss-cross-equality', 'equality:criss_cross_equality', 60),
    _part('attention-equality', 'equality:attention_equality', 40),
    _part('criss-cross', 'criss_cross:measure', 110),
    _part('pairwise', 'pairwise:measure', 90),
    _part('blocks', 'blocks:measure', 70),
    _part('criss-cross-compiled', 'criss_cross:measure_compiled', 70),
    _part('large-map', 'large_map:measure', 40),
    _part('gates', 'gates:measure', 50),
    _part('pairwise-compiled', 'pairwise:measure_compiled', 50),
    _part('gates-compiled', 'gates:measure_compiled', 60),
    _part('loss', 'loss:measure', 20),
    _part('network', 'network:measure', 50),
)
