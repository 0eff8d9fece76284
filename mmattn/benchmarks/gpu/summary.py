"""What the rows of a report mean: what is right, what is fast, and which targets are missed."""

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]

_TIMES = ('graph_ms', 'call_ms')
# block, dtype, batch (None: any), least ratio of the best baseline to the best of ours
_TARGETS = (
    ('CrissCrossAttention', 'bf16', 8, 2.0),
    ('CrissCrossAttention', 'fp32', None, 1.0),
    ('PAM', 'bf16', None, 1.0),
)


def summarize(report: dict[str, Any]) -> dict[str, Any]:
    """Checks, ratios and targets of a report, see `run_report`.

    Returns:
        `checks` and `right`, numbers of checks; `wrong`, `unfinished`, `cut`, `errors` and `notes`,
        lists of sentences; `ratios`, one entry for each block, dtype, shape and measure; `targets`
        of those; `missed`, sentences.
    """
    parts = report['parts']
    rows = [row for part in parts.values() for row in part['rows']]
    checks = [row for row in rows if row['kind'] == 'check']
    times = [row for row in rows if row['kind'] == 'time']
    wrong = [row for row in checks if not row['ok']]
    different = [row for row in times if row.get('equal') is False and row['role'] != 'other']
    ratios = list(_ratios(times))
    targets = [] if report['small'] else list(_targets(ratios))
    return dict(
        checks=len(checks),
        right=len(checks) - len(wrong),
        wrong=[_explain(row) for row in wrong]
        + [f'{_case(row)}: {_name(row)} differs by {row["difference"]:.1e}' for row in different],
        unfinished=[
            f'{name}: {part["status"]}, {part["error"]}'
            for name, part in parts.items()
            if part['status'] != 'ok'
        ],
        cut=[row['what'] for row in rows if row['kind'] == 'cut'],
        errors=[f'{_case(row)}: {_name(row)}: {row["error"]}' for row in times if 'error' in row],
        notes=[row['text'] for row in rows if row['kind'] == 'note'],
        ratios=ratios,
        targets=targets,
        missed=[
            f'{target["case"]} {target["measure"]}: {_number(target["ratio"])}, '
            f'target >={target["target"]:g}'
            for target in targets
            if not target['met']
        ],
    )


def to_text(report: dict[str, Any]) -> str:
    """The summary of a report for a terminal."""
    return '\n'.join(_lines(report)) + '\n'


def _lines(report: dict[str, Any]) -> Iterator[str]:
    summary = report['summary']
    rows = [row for part in report['parts'].values() for row in part['rows']]
    for row in rows:
        if row['kind'] == 'machine':
            yield ', '.join(f'{key} {value}' for key, value in row.items() if key != 'kind')
        elif row['kind'] == 'ceiling':
            unit = 'tflop_per_s' if 'tflop_per_s' in row else 'gb_per_s'
            yield f'  {row["name"]}: {row[unit]} {unit.replace("_per_", "/")}'
    if report['small']:
        yield 'In small on a CPU: shows that the report works; its times mean nothing.'
    yield ''
    yield f'Right: {summary["right"]} of {summary["checks"]} checks.'
    for title in 'wrong', 'unfinished', 'cut', 'errors', 'notes':
        yield from (f'  {title}: {text}' for text in summary[title])
    yield ''
    yield 'Fast: best baseline over best of ours, above 1 ours is faster. Device: replayed from a'
    yield 'CUDA graph; called: from Python. Layouts: lower of the two, by memory format.'
    width = max([len(_title(entry)) for entry in summary['ratios']], default=0)
    head = ('device', 'called', 'nchw', 'nhwc', 'ours ms', 'baseline ms')
    yield ' ' * width + ''.join(f'{title:>12s}' for title in head)
    for entry in summary['ratios']:
        figures = [
            entry[key] for key in ('device', 'called', 'nchw', 'nhwc', 'ours_ms', 'baseline_ms')
        ]
        yield f'{_title(entry):{width}s}' + ''.join(f'{_number(figure):>12s}' for figure in figures)
    yield from _compile_lines(rows)
    yield ''
    met = sum(target['met'] for target in summary['targets'])
    yield f'Targets: {met} of {len(summary["targets"])} met; the lower ratio counts.'
    yield from (f'  missed: {text}' for text in summary['missed'])


def _compile_lines(rows: list[Row]) -> Iterator[str]:
    compiled = [row for row in rows if row['kind'] == 'compile']
    if compiled:
        yield ''
        yield 'First call, without the time of the second, in s:'
    for row in compiled:
        yield (
            f'  {row["name"]}, {row["size"]} size: forward {row["forward_s"]:.2f}, '
            f'backward {row["backward_s"]:.2f}'
        )


def _ratios(times: list[Row]) -> Iterator[Row]:
    """For each case and measure, the best baseline over the best of ours."""
    groups: dict[tuple, list[Row]] = {}
    for row in times:
        if 'error' not in row and row['role'] != 'other':
            groups.setdefault((_case(row), row['measure']), []).append(row)
    for (case, measure), rows in groups.items():
        first = rows[0]
        entry = dict(case=case, measure=measure, block=first['block'], dtype=first['dtype'])
        entry['shape'] = first['shape']
        device, called = (_ratio(rows, key) for key in _TIMES)
        entry |= dict(device=device, called=called, ratio=_lower(device, called))
        for layout in 'nchw', 'nhwc':
            some = [row for row in rows if row['layout'] == layout]
            entry[layout] = _lower(*(_ratio(some, key) for key in _TIMES))
        key = 'graph_ms' if device else 'call_ms'
        for role in 'ours', 'baseline':
            best = _best(rows, role, key)
            entry[f'{role}_ms'] = best and best[key]['median']
            entry[f'best_{role}'] = best and _name(best)
        yield entry


def _ratio(rows: list[Row], key: str) -> float | None:
    best = [_best(rows, role, key) for role in ('baseline', 'ours')]
    if None in best:
        return None
    baseline, ours = (row[key]['median'] for row in best)
    return round(baseline / ours, 3) if ours else None


def _best(rows: list[Row], role: str, key: str) -> Row | None:
    timed = [row for row in rows if row['role'] == role and key in row]
    return min(timed, key=lambda row: row[key]['median'], default=None)


def _lower(*ratios: float | None) -> float | None:
    return min((ratio for ratio in ratios if ratio is not None), default=None)


def _targets(ratios: list[Row]) -> Iterator[Row]:
    for entry in ratios:
        for block, dtype, batch, target in _TARGETS:
            if (entry['block'], entry['dtype']) == (block, dtype) and batch in (
                None,
                entry['shape'][0],
            ):
                ratio = entry['ratio']
                met = ratio is not None and ratio >= target
                yield dict(
                    case=entry['case'],
                    measure=entry['measure'],
                    ratio=ratio,
                    target=target,
                    met=met,
                )


def _case(row: Row) -> str:
    return f'{row["block"]} {row["dtype"]} {"x".join(map(str, row["shape"]))}'


def _name(row: Row) -> str:
    how = 'compiled' if row['compiled'] else 'eager'
    return f'{row["contender"]}, {how}, {row["layout"]}, {row["measure"]}'


def _title(entry: Row) -> str:
    return f'{entry["case"]} {entry["measure"]}'


def _explain(row: Row) -> str:
    if 'errors' not in row:
        return f'{row["name"]}: {row["error"]}'
    apart = ', '.join(
        f'{key} {"not finite" if value is None else f"{value:.1e}"} > {row["limits"][key]:.1e}'
        for key, value in row['errors'].items()
        if value is None or value > row['limits'][key]
    )
    return f'{row["name"]}: {apart}'


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.3g}'
