"""Extension of the site: pages that are made from code and data, links into the repository, MathML.

The pages are written to `docs/generated`, which git ignores, each time the site is built.
"""

import re
from functools import cache
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

from . import api, blocks, docstrings, mathml, model_zoo
from .links import DeadLink, drop_empty_patterns, rewrite_links

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[3]
GENERATED = 'generated'
DOCUMENTS = {  # document of the repository -> its page, both as they are
    'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md',
    'SECURITY.md': 'security.md',
}


def setup(app: Sphinx) -> dict:
    app.add_config_value('repository', '', 'env')
    app.connect('builder-inited', _generate)
    app.connect('source-read', _change_source)
    mathml.setup(app)
    docstrings.setup(app)
    return dict(parallel_read_safe=True, parallel_write_safe=True)


def repository_address() -> str:
    """Address of the repository at GitHub, from the file that torch.hub reads."""
    text = (ROOT / 'hubconf.py').read_text(encoding='utf-8')
    name = re.search(r'load\(.([\w-]+/[\w-]+)', text)[1]
    return f'https://github.com/{name}'


def all_pages(docs: Path, repository: str) -> dict[str, str]:
    """Path in the folder `generated` -> content of all pages and figures that are made."""
    pages = {'api.rst': api.page(), 'model_zoo.md': model_zoo.page(repository)}
    pages |= {f'blocks/{name}': text for name, text in blocks.pages(repository).items()}
    for document, name in DOCUMENTS.items():
        path = docs.parent / document
        text = path.read_text(encoding='utf-8')
        pages[name] = rewrite_links(text, path, docs, repository, made_pages())
    return pages


@cache
def made_pages() -> dict[str, str]:
    """What pages link to in the repository -> the page in `generated` that the site has for it."""
    made = dict.fromkeys(['mmattn/__init__.py', *api.files()], 'api.rst')
    made['configs/metafile.yml'] = 'model_zoo.md'
    made |= {f'docs/blocks.md#{name.lower()}': f'blocks/{name}.md' for name in blocks.names()}
    return made | DOCUMENTS


def _generate(app: Sphinx) -> None:
    """Write the pages that have changed, and remove those that are no longer made."""
    docs = Path(app.srcdir)
    folder = docs / GENERATED
    pages = all_pages(docs, app.config.repository)
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding='utf-8') != text:
            path.write_text(text, encoding='utf-8')
    for path in folder.rglob('*'):
        if path.is_file() and path.relative_to(folder).as_posix() not in pages:
            path.unlink()


def _change_source(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname.startswith(f'{GENERATED}/'):
        return
    docs, page = Path(app.srcdir), Path(app.env.doc2path(docname))
    if docname == 'index':
        source[0] = drop_empty_patterns(source[0], docs)
    try:
        source[0] = rewrite_links(source[0], page, docs, app.config.repository, made_pages())
    except DeadLink as error:
        logger.warning('%s', error, location=docname)
