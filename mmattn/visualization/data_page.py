"""One HTML page with samples of a data set before and after augmentation, and charts."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from .html_charts import legend
from .html_template import fill_template


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


def write_data_page(
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
    fill_template(
        path,
        'data_page.html',
        title,
        ABOUT=''.join(f'<p>{escape(text)}</p>' for text in about),
        LEGEND=legend(classes),
        CHARTS=''.join(charts),
        SAMPLES=''.join(map(_sample, samples)),
    )


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
