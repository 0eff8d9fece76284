"""Report the cost of a network as a table, as JSON and as a plot."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from mmattn.benchmarks.machine import describe_in_words, describe_machine
from mmattn.benchmarks.timing import find_device
from mmattn.config.load import load_config
from mmattn.errors import Exit, MmattnError
from mmattn.files import check_writable
from mmattn.progress import track

from .cost import Cost, kept_bytes, latencies, measure_cost
from .cost_plot import plot_cost


class DoesNotFit(MmattnError):
    """Training needs more memory than is available."""

    code = Exit.MEMORY


def report_cost(
    config: str | Path,
    *,
    json_path: str | Path | None = None,
    plot_path: str | Path | None = None,
    device: str = 'cpu',
    **arguments,
) -> Cost:
    """Print the cost of a network as a table; optionally write it as JSON and plot it.

    Args:
        config: path of the config.
        json_path: JSON file for the figures.
        plot_path: image file.
        device: device on which the latency is measured.
        arguments: further arguments of `measure_cost`.

    Raises:
        DoesNotFit: training does not fit in memory; raised after all is written.
        UsageError, WriteError: see `measure_cost`; a file cannot be written.
    """
    for path, flag in (json_path, '--json'), (plot_path, '--plot'):
        if path:
            check_writable(Path(path).parent, flag)
    cost = measure_cost(config, device=device, **arguments)
    print(*cost_lines(cost, describe_machine(find_device(device))), sep='\n')
    if json_path:
        Path(json_path).write_text(json.dumps(asdict(cost), indent=1), encoding='utf-8')
    if plot_path:
        plot_cost(cost, Path(config).stem, plot_path)
    verdict = memory_verdict(cost)
    if cost.memory.fits is False:
        raise DoesNotFit(verdict)
    print(verdict)
    return cost


def report_comparison(
    config: str | Path,
    names: list[str],
    *,
    json_path: str | Path | None = None,
    device: str = 'cpu',
    **arguments,
) -> dict[str, Cost]:
    """Print the cost of a network with each of several blocks, as a table in Markdown.

    Args:
        config: path of the config.
        names: blocks, 'a+b' for both at once; the plain network, 'none', comes first.
        json_path: JSON file for the figures.
        device: device on which the latency is measured.
        arguments: further arguments of `measure_cost`.

    Raises:
        UsageError, WriteError: see `measure_cost`; a file cannot be written.
    """
    if json_path:
        check_writable(Path(json_path).parent, '--json')
    names = list(dict.fromkeys(['none', *names]))
    for name in names:
        load_config(config, attention=name.replace('+', ','))  # refuse unknown names first
    latency = arguments.pop('latency', True)
    costs, kept = {}, {}
    for name in track(names, total=len(names), title='cost'):
        network = dict(attention=name.replace('+', ','), options=arguments.get('options'))
        costs[name] = measure_cost(config, device=device, latency=False, **(arguments | network))
        kept[name] = kept_bytes(config, size=costs[name].size, **network)
    if latency:
        size, options = costs['none'].size, arguments.get('options')
        times = latencies(config, names, size=size, device=device, options=options)
        for name, cost in costs.items():
            cost.rows[0].ms = times[name]
    print(*comparison_lines(costs, kept, describe_machine(find_device(device))), sep='\n')
    if json_path:
        content = {name: asdict(cost) | dict(kept_bytes=kept[name]) for name, cost in costs.items()}
        Path(json_path).write_text(json.dumps(content, indent=1), encoding='utf-8')
    return costs


def comparison_lines(costs: dict[str, Cost], kept: dict[str, Cost], machine: dict) -> Iterator[str]:
    """A line for each block: cost of the network, and what the block adds to the plain one.

    Args:
        costs: by name of the block.
        kept: bytes saved for backward where plugins keep what they need, by name.
        machine: see `describe_machine`.
    """
    plain = costs['none']
    height, width = plain.size
    batch = plain.batch
    images = f'{batch} image' + 's' * (batch > 1)
    times = '| ms ' if plain.rows[0].ms is not None else ''
    yield (
        "| attention | parameters | GMACs | saved, MB | with `memory='keep'`, MB "
        f'{times}| training with {images}, GB |'
    )
    yield '|---' + '|---:' * (6 if times else 5) + '|'
    for name, cost in costs.items():
        row, base, keeps = cost.rows[0], plain.rows[0], kept[name]
        pairs = [
            (f'{row.parameters:,}', row.parameters - base.parameters, ',', 1),
            (f'{row.macs / 1e9:.2f}', row.macs - base.macs, ',.2f', 1e9),
            (f'{row.saved_bytes / 1e6:.1f}', row.saved_bytes - base.saved_bytes, ',.1f', 1e6),
            (f'{keeps / 1e6:.1f}', keeps - base.saved_bytes, ',.1f', 1e6),
        ]
        if row.ms is not None:
            pairs.append((f'{row.ms:.0f}', row.ms - base.ms, ',.0f', 1))
        cells = [
            text if name == 'none' else f'{text} ({added / unit if unit > 1 else added:+{form}})'
            for text, added, form, unit in pairs
        ]
        yield f'| `{name}` | {" | ".join(cells)} | {cost.memory.total / 1e9:.2f} |'
    yield ''
    description = describe_in_words(machine)
    yield f'One image of {width}x{height}; {description}.'


def cost_lines(cost: Cost, machine: dict) -> Iterator[str]:
    """The table: the whole network, its parts, and its attention blocks."""
    height, width = cost.size
    yield f'one image of {width}x{height}; {describe_in_words(machine)}'
    path_width = max(len(row.path) for row in cost.rows) + 2
    yield (
        f'{"module":<{path_width}}{"type":<22}{"runs":>5}{"parameters":>13}{"GMACs":>10}'
        f'{"saved MB":>10}{"ms":>10}'
    )
    for row in cost.rows:
        name = row.path or 'all'
        ms = '-' if row.ms is None else f'{row.ms:.1f}'
        yield (
            f'{name:<{path_width}}{row.type:<22}{row.runs:>5}{row.parameters:>13,}'
            f'{row.macs / 1e9:>10.2f}{row.saved_bytes / 1e6:>10.1f}{ms:>10}'
        )
    total, blocks = cost.rows[0], [row for row in cost.rows if row.block]
    if blocks:
        shares = {
            'parameters': sum(row.parameters for row in blocks) / total.parameters,
            'GMACs': sum(row.macs for row in blocks) / total.macs,
            'saved memory': sum(row.saved_bytes for row in blocks) / total.saved_bytes,
        }
        if total.ms:
            shares['ms'] = sum(row.ms for row in blocks) / total.ms
        text = ', '.join(f'{100 * share:.1f} % of {name}' for name, share in shares.items())
        yield f'{len(blocks)} attention block{"" if len(blocks) == 1 else "s"}: {text}'


def memory_verdict(cost: Cost) -> str:
    """Whether training fits in memory, in a sentence."""
    memory = cost.memory
    parts = ', '.join(
        f'{name} {getattr(memory, name) / 1e9:.2f}' for name in ('weights', 'optimizer', 'backward')
    )
    need = f'training with {cost.batch} images a device needs about {memory.total / 1e9:.1f} GB'
    if memory.limit is None:
        return f'{need} ({parts}); free memory is unknown.'
    limit = f'{memory.limit / 1e9:.1f} GB'
    if memory.fits:
        return f'{need} ({parts}) and fits in {limit}.'
    return f'{need} ({parts}) and does not fit in {limit}. Lower the batch size or the crop.'
