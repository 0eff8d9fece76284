"""One HTML page with samples of a data set before and after augmentation, and charts."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from mmattn.errors import cannot_write

from .html_charts import legend

_TEMPLATE = Path(__file__).with_name('data_page.html')


class Stage(NamedTuple):
    """A sample at one stage.

    Attributes:
        title: 'before' or 'after', with its size.
        plain, annotated: paths of the pictures, relative to the page.
        caption: what is in it.
    """

    title: str
    plain: str
    annotated: str
    caption: str


class Sample(NamedTuple):
    """A sample of a data set.

    Attributes:
        name: the image.
        stages: the stages in their order.
    """

    name: str
    stages: Sequence[Stage]


def write_page(
    path: Path,
    *,
    title: str,
    about: Sequence[str],
    classes: Sequence[tuple[str, str]],
    charts: Sequence[str],
    samples: Sequence[Sample],
) -> None:
    """Write the page, which shows pictures of its folder and needs no network.

    Args:
        path: path of the HTML file.
        title, about: heading, and paragraphs below it.
        classes: names of the classes and their CSS colours.
        charts: HTML of `mmattn.visualization.html_charts`.
        samples: the samples, from top to bottom.

    Raises:
        WriteError: the file cannot be written.
    """
    content = {
        '__TITLE__': escape(title),
        '__ABOUT__': ''.join(f'<p>{escape(text)}</p>' for text in about),
        '__LEGEND__': legend(classes),
        '__CHARTS__': ''.join(charts),
        '__SAMPLES__': ''.join(map(_sample, samples)),
    }
    page = _TEMPLATE.read_text(encoding='utf-8')
    parts = []  # names in the data may look like places of the template
    while place := min((p for p in content if p in page), key=page.index, default=None):
        before, _, page = page.partition(place)
        parts += [before, content[place]]
    try:
        path.write_text(''.join([*parts, page]), encoding='utf-8')
    except OSError as error:
        raise cannot_write(path, error) from error


def _sample(sample: Sample) -> str:
    stages = ''.join(map(_stage, sample.stages))
    return f'<section><h2>{escape(sample.name)}</h2><div class="pair">{stages}</div></section>'


def _stage(stage: Stage) -> str:
    plain, annotated = quote(stage.plain), quote(stage.annotated)
    return (
        f'<figure><a href="{annotated}"><img src="{annotated}" data-plain="{plain}" '
        f'data-annotated="{annotated}" loading="lazy" alt="{escape(stage.title)}"></a>'
        f'<figcaption>{escape(stage.title)}: {escape(stage.caption)}</figcaption></figure>'
    )
