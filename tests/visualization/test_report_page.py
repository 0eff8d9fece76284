"""The page of a report in a browser: everything is there, at any width, by keyboard, whatever the names."""

import cv2
import numpy as np
import pytest

from mmattn.visualization.report_page import (
    Legend,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    write_report_page,
)
from mmattn.visualization.report_plots import (
    line_colours,
    plot_confusion,
    plot_f1,
    plot_precision_recall,
)
from tests.report_tables import Page

NAMES = ['_background_', '<b>cat & "dog"</b>', '__LINKS__', '$5 to $6', '红绿灯', 'a\nb']


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp('report')
    (folder / 'pictures').mkdir()
    curve = np.linspace(0, 1, 101), np.linspace(1, 0, 101)
    plot_precision_recall([curve, None], curve, folder / 'pictures' / 'a curve #1.png')
    matrix = np.arange(36).reshape(6, 6)
    plot_confusion(matrix, NAMES, NAMES, folder / 'pictures' / 'matrix.png')
    rows = [[name, *map(str, line)] for name, line in zip(NAMES, matrix)]
    wide = [[name, *(f'{name}{i}' for i in range(40))] for name in NAMES]
    pictures = [
        Picture('pictures/a curve #1.png', 'a "curve"', 'Precision', 'data/<odd> & \udcff.png'),
        Picture('pictures/matrix.png', 'matrix', 'Counts'),
    ]
    parts = [
        Text('1 < 2'),
        Table('numbers', ['class', *NAMES], rows),
        Table('wide', ['class', *map(str, range(40))], wide),
        Table('more', ['class', *NAMES], rows, folded=True),
        Legend([*zip(line_colours(6), NAMES)]),
    ]
    sections = [Section('<metric>', parts), Section('worst', [Pictures(pictures)])]
    write_report_page(folder / 'index.html', '<Report>', {'config': 'a&b.py'}, sections)
    return folder / 'index.html'


def test_texts_are_shown_as_they_are(page):
    read = Page(page)
    shown = [name.replace('\n', '\\n') for name in NAMES]
    assert [row[0] for row in read.tables['numbers'][0][1:]] == shown
    assert read.tables['numbers'][0][1][1:] == ['0', '1', '2', '3', '4', '5']
    assert 'data/<odd> & \\udcff.png' in read.pictures['pictures/a%20curve%20%231.png']
    assert all(text in read.text for text in ('1 < 2', '<Report>', 'a&b.py', '<metric>'))
    assert '<b>' not in page.read_text() and '<script' not in page.read_text()
    local = [t for t in read.targets if not t.startswith(('#', 'data:'))]
    assert local and all(target.startswith('pictures/') for target in local)


def test_a_browser_shows_it_at_any_width_and_the_keyboard_reaches_all(page, chromium):
    from selenium.webdriver import ActionChains, Keys

    run = chromium.execute_script
    chromium.get(page.as_uri())
    try:
        for width in 1200, 420:
            chromium.set_window_size(width, 900)
            within = 'return document.documentElement.scrollWidth <= window.innerWidth'
            assert run(within), width
            for element in chromium.find_elements('tag name', 'img'):
                run('arguments[0].loading = "eager"; arguments[0].scrollIntoView()', element)
            loaded = 'Promise.all([...document.images].map(i => i.decode()))'
            chromium.execute_async_script(f'{loaded}.then(arguments[0])')
            sizes = run('return [...document.images].map(i => [i.naturalWidth, i.clientWidth])')
            assert len(sizes) == 2 and all(0 < shown <= width for _, shown in sizes), sizes
        run('document.activeElement.blur(); window.scrollTo(0, 0)')
        reached = []
        for _ in range(12):
            ActionChains(chromium).send_keys(Keys.TAB).perform()
            name = 'const e = document.activeElement; return e.hash || e.innerText || e.tagName'
            reached.append(run(name))
            if run('return document.activeElement.tagName') == 'SUMMARY':
                ActionChains(chromium).send_keys(Keys.ENTER).perform()
                assert run('return document.querySelector("details").open')
            if run('return document.activeElement.innerText').startswith('wide'):
                ActionChains(chromium).send_keys(Keys.ARROW_RIGHT * 3).perform()
                moved = 'const e = document.activeElement; return new Promise(r => '
                moved += 'setTimeout(() => r(e.scrollLeft), 400))'
                assert run(moved) > 0
        assert reached[:2] == ['#section1', '#section2'] and 'more' in reached
        assert chromium.title == '<Report>' and chromium.get_log('browser') == []
    finally:
        chromium.set_window_size(1200, 1000)


def test_the_matrix_is_drawn_by_rows(tmp_path):
    """Darker where more of the true class is; the same for ten times as many objects."""
    matrix = np.array([[8, 2], [0, 0], [50, 50]])
    for name, factor in dict(a=1, b=10).items():
        plot_confusion(matrix * factor, list('xyz'), list('xy'), tmp_path / f'{name}.png')
    pictures = [cv2.imread(str(tmp_path / f'{name}.png')) for name in 'ab']
    assert (pictures[0] == pictures[1]).all() and len(np.unique(pictures[0])) > 50


def test_more_classes_than_colours(tmp_path):
    assert len(set(line_colours(10))) == 10 and len(set(line_colours(20))) == 20
    assert line_colours(21) == []
    rng = np.random.default_rng(0)
    lines = [(np.sort(rng.random(5))[::-1], rng.random(5)) for _ in range(30)]
    plot_f1(lines, (np.zeros(0), np.zeros(0)), tmp_path / 'f1.png', None)
    assert cv2.imread(str(tmp_path / 'f1.png')).shape[2] == 3
