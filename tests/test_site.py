"""The built site: it builds without a warning, has every name and block, and works from a folder without a network."""

import fcntl
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import mmattn
from mmattn.blocks.base import registered_blocks
from mmattn.zoo.block_pages import block_text
from tests.conftest import ROOT

BLOCKS = [n for n, cls in registered_blocks().items() if cls.__module__.startswith('mmattn.')]


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    """The folder of the site, built once for all processes of the tests."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if 'PYTEST_XDIST_WORKER' in os.environ else folder
    html, log = folder / 'site', folder / 'site.log'
    with open(folder / 'site.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            build(html, log)
    text = log.read_text(encoding='utf-8')
    assert text.endswith('exit code 0'), text
    return html


def build(html, log):
    command = [sys.executable, '-m', 'sphinx', '-W', '-n', '--keep-going', '-q', '-b', 'html']
    paths = os.environ.get('PYTHONPATH')
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), paths])))
    output = subprocess.run(
        [*command, '-d', f'{html}.doctrees', ROOT / 'docs', html],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=env,
    )  # fmt: skip
    log.write_text(f'{output.stdout}exit code {output.returncode}', encoding='utf-8')


class Page(HTMLParser):
    """Elements of a page: (tag, attributes), anchors, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ''
        self.feed(path.read_text(encoding='utf-8'))
        self.anchors = {a[k] for _, a in self.elements for k in ('id', 'name') if a.get(k)}

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope='session')
def pages(site):
    return {path: Page(path) for path in site.rglob('*.html')}


@pytest.fixture(scope='session')
def inventory(site):
    """Names of Python that the site describes."""
    from sphinx.util.inventory import InventoryFile

    with open(site / 'objects.inv', 'rb') as file:
        kinds = InventoryFile.load(file, '', os.path.join)
    return {name for kind, names in kinds.items() if kind.startswith('py:') for name in names}


def test_every_public_name_is_described(inventory):
    assert {f'mmattn.{name}' for name in mmattn.__all__} <= inventory


def test_what_the_readme_calls_is_described(inventory):
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    called = set(re.findall(r'\bmmattn\.(\w+(?:\.\w+)*)\(', text))
    assert called
    for name in called:
        owner = name.partition('.')[0]  # a method of a class is on its page
        assert f'mmattn.{name}' in inventory or owner in mmattn.__all__, name


@pytest.mark.parametrize('name', BLOCKS)
def test_a_block_has_a_page_with_figure_equation_and_arguments(site, pages, name):
    page = pages[site / 'generated' / 'blocks' / f'{name}.html']
    (figure,) = [a['src'] for tag, a in page.elements if tag == 'img' and f'{name}.svg' in a['src']]
    drawing = (site / 'generated' / 'blocks' / figure).read_text(encoding='utf-8')
    assert drawing.count('<rect') >= 4 and '>(N, C, H, W)<' in drawing and '(?' not in drawing
    assert 'math' in [tag for tag, _ in page.elements]
    text = block_text(name)
    assert text.summary in page.text
    for arguments, _ in text.arguments:
        assert all(argument in page.text for argument in arguments.split(', '))
    assert '*args' not in page.text
    assert all(place in page.text for place in text.placements.values())


def test_no_link_within_the_site_is_dead(site, pages):
    count = 0
    for path, page in pages.items():
        for tag, attributes in page.elements:
            target = attributes.get('href') or attributes.get('src') or ''
            parts = urlsplit(target)
            if not target or parts.scheme or parts.netloc:
                continue
            file = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            assert file.exists(), f'{path.relative_to(site)}: {target}'
            if parts.fragment and file in pages and tag == 'a':
                assert unquote(parts.fragment) in pages[file].anchors, f'{path}: {target}'
            count += 1
    assert count > 1000


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        for tag, attributes in page.elements:
            source = attributes.get('src') or (attributes.get('href') if tag == 'link' else '')
            assert not urlsplit(source or '').netloc, f'{path.relative_to(site)}: {source}'


def test_files_of_the_repository_are_at_github(pages, site):
    page = pages[site / 'positions.html']
    links = [a.get('href', '') for tag, a in page.elements if tag == 'a']
    assert any(
        re.fullmatch(r'https://github.com/.*/tree/main/configs/_base_/attention', x) for x in links
    )
    assert any(link.startswith('generated/api.html') for link in links)


@pytest.fixture
def offline(chromium):
    """Chromium with all addresses of a network blocked."""
    chromium.execute_cdp_cmd('Network.enable', {})
    chromium.execute_cdp_cmd('Network.setBlockedURLs', dict(urls=['http://*', 'https://*']))
    yield chromium
    chromium.execute_cdp_cmd('Network.setBlockedURLs', dict(urls=[]))


def test_a_browser_searches_and_finds_a_page(site, offline):
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    offline.get((site / 'index.html').as_uri())
    field = offline.find_element('css selector', 'form[action*="search"] input[name="q"]')
    field.send_keys('criss-cross', Keys.ENTER)
    wait = WebDriverWait(offline, 20)
    wanted = 'a[href*="blocks/CrissCrossAttention.html"]'
    wait.until(lambda b: b.find_elements('css selector', f'#search-results {wanted}'))
    offline.find_element('css selector', f'#search-results {wanted}').click()
    wait.until(lambda b: 'CrissCrossAttention' in b.title)
    assert '/generated/blocks/CrissCrossAttention.html' in offline.current_url


@pytest.mark.parametrize('name', ['CBAM', 'NonLocal2d'])
def test_a_browser_draws_figure_and_equation_of_a_block(site, offline, name):
    offline.get_log('browser')  # of the page before
    offline.get((site / 'generated' / 'blocks' / f'{name}.html').as_uri())
    run = offline.execute_script
    figure = 'const i = document.querySelector("figure img"); return [i.naturalWidth, i.clientWidth, i.clientHeight]'
    assert min(run(figure)) > 100
    boxes = run(
        'return [...document.querySelectorAll("math")].map(m => {'
        'const r = m.getBoundingClientRect(); return [r.width, r.height, getComputedStyle(m).display]})'
    )
    assert boxes and all(w > 50 and h > 10 and 'math' in display for w, h, display in boxes)
    sizes = 'return [...document.querySelector("math msub").children].map('
    base, index = run(f'{sizes}e => parseFloat(getComputedStyle(e).fontSize))')
    assert index < base  # set as mathematics, not as text
    assert offline.get_log('browser') == []
