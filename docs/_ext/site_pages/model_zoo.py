"""The page of all models in `configs/metafile.yml`: results of ours, and figures of others."""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from .tables import ROOT, escape, table

_TASKS = (  # key of a published or measured metric -> task, the first that fits
    ('mask AP', 'instance segmentation'),
    ('box AP', 'detection'),
    ('mIoU', 'semantic segmentation'),
)


@dataclass(frozen=True)
class Row:
    """A model of the index.

    Attributes:
        name: name of its config.
        collection: family of models.
        task: what it predicts; '' if no metric tells.
        data: data set of its result, else of its training.
        measured: metrics that were measured here, with the seed; '' if it was not trained here.
        published: figures of others, each with its source.
        weights: address of the weights; '' if there are none.
        ours: whether the weights were trained here.
    """

    name: str
    collection: str
    task: str
    data: str
    measured: str
    published: tuple[str, ...]
    weights: str
    ours: bool


@cache
def rows() -> tuple[Row, ...]:
    """All models, in the order of the file."""
    index = _index()
    return tuple(_row(entry) for entry in index['Models'])


def page(repository: str) -> str:
    """The page in MyST Markdown.

    Args:
        repository: address of the repository at GitHub.
    """
    parts = [
        '# Model zoo',
        f'All models of [configs/metafile.yml]({repository}/blob/main/configs/metafile.yml), '
        'which also has the hardware and the commands of each result. *Measured here* is what '
        'those commands printed, with the number of seeds; *published* is what others report, '
        'with their source, and no result of ours. `mmattn test NAME` downloads the weights of a '
        'row that has them; they are those of the published figures, unless marked as ours.',
    ]
    papers = {c['Name']: c['Paper'] for c in _index()['Collections']}
    tasks = {name: _task_of(name) for name in papers}
    for collection, paper in papers.items():
        chosen = [row for row in rows() if row.collection == collection]
        cells = [_cells(row, tasks[collection]) for row in chosen]
        heads = ['model', 'task', 'data', 'measured here', 'published', 'weights']
        parts += [
            f'## {escape(collection)}',
            f'[{escape(paper["Title"])}]({paper["URL"]})',
            table(heads, cells),
        ]
    return '\n\n'.join(parts) + '\n'


@cache
def _index() -> dict[str, Any]:
    text = (ROOT / 'configs' / 'metafile.yml').read_text(encoding='utf-8')
    return yaml.safe_load(text)


def _row(entry: dict[str, Any]) -> Row:
    results, published = entry.get('Results') or [], entry.get('Published') or []
    names = {name for result in results for name in result['Metrics']}
    names |= {name for figure in published for name in figure}
    measured = [_metrics(result['Metrics']) for result in results]
    if measured:
        measured.append(f'seed {entry["Metadata"]["Seed"]}, one run')
    data = entry['Metadata']['Training Data']
    return Row(
        name=entry['Name'],
        collection=entry['In Collection'],
        task=next((task for name, task in _TASKS if name in names), ''),
        data='; '.join(dict.fromkeys(result['Dataset'] for result in results)) or data,
        measured='; '.join(measured),
        published=tuple(_published(figure) for figure in published),
        weights=entry.get('Weights') or '',
        ours='SHA256' in entry,
    )


def _metrics(metrics: dict[str, Any]) -> str:
    """'mIoU 46.69, aAcc 84.27'; metrics of single classes are left out."""
    shown = {name: value for name, value in metrics.items() if '.' not in name}
    return ', '.join(f'{name} {_value(value)}' for name, value in shown.items())


def _value(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ' / '.join(
        f'{v:.2f}'.rstrip('0').rstrip('.') if isinstance(v, float) else str(v) for v in values
    )


def _published(figure: dict[str, Any]) -> str:
    metrics = {name: v for name, v in figure.items() if name not in ('Source', 'Memory (GB)')}
    return f'{_metrics(metrics)} ({figure["Source"]})'


def _task_of(collection: str) -> str:
    """The task of most models of a collection."""
    tasks = Counter(row.task for row in rows() if row.collection == collection and row.task)
    return tasks.most_common(1)[0][0] if tasks else ''


def _cells(row: Row, task: str) -> list[str]:
    weights = '-'
    if row.weights:
        weights = f'[download]({row.weights}){", ours" if row.ours else ""}'
    return [
        f'`{row.name}`',
        row.task or task or '-',
        escape(row.data),
        escape(row.measured) or 'not trained here',
        escape('; '.join(row.published)) or '-',
        weights,
    ]
