"""Views of attention: their numbers are those of the blocks, in Python and in the page."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from mmattn import APNB, MHSA, PAM, CrissCrossAttention, NonLocal2d, SpatialTransformer
from mmattn.ops import pyramid_pool
from mmattn.visualization.html_page import write_page
from mmattn.visualization.panels import Collector, composed, heat, spread, thinned
from mmattn.visualization.recording import watching
from tests.blocks import contract
from tests.conftest import randomise

SIZE = (9, 12)
IMAGE = np.random.default_rng(0).integers(0, 255, (72, 96, 3), np.uint8)
QUERIES = [(0.0, 0.0), (0.5, 0.5), (0.3, 0.99)]


def pairwise() -> dict[str, nn.Module]:
    """Blocks whose pairs follow every rule that a page knows."""
    modes = ('gaussian', 'embedded_gaussian', 'dot_product', 'concatenation')
    blocks = {mode: NonLocal2d(16, mode=mode) for mode in modes}
    blocks |= dict(
        pooled=NonLocal2d(16, sub_sample=True),
        pam=PAM(16),
        heads=MHSA(16, heads=2, size=6),
        apnb=APNB(16, 8, query_scales=(1, 2)),
        once=CrissCrossAttention(16),
        twice=CrissCrossAttention(16, recurrence=2),
    )
    return {name: randomise(block).eval() for name, block in blocks.items()}


def collect(model: nn.Module, *inputs) -> Collector:
    collector = Collector()
    with torch.no_grad(), watching(model, collector):
        model(*inputs)
    return collector


@pytest.mark.parametrize('name', sorted(contract.registered()))
def test_every_block_has_views(name):
    cls = contract.registered()[name]
    block = randomise(cls.build(**cls.examples[0])).eval()
    inputs = [torch.randn(shape) for shape in block.input_shapes(1, *SIZE)]
    (seen,) = [one for one in collect(block, *inputs).block_views(IMAGE) if one.path == ''] or [
        None
    ]
    if seen is None:  # attention of blocks inside it
        seen = collect(block, *inputs).block_views(IMAGE)[0]
    assert seen.views
    for view in seen.views:
        assert view.picture.dtype == np.uint8 and view.picture.ndim == 3
        json.dumps(view.data, allow_nan=False)


def test_rounds_compose_as_their_matrices():
    block = randomise(CrissCrossAttention(16, recurrence=2)).double().eval()
    collector = collect(block, torch.randn(1, 16, 5, 7, dtype=torch.float64))
    one, two = [pairs for _, _, pairs in collector.records]
    every = torch.arange(35)
    first, second = (pairs.weights(every)[0].flatten(1) for pairs in (one, two))  # (P, P)
    found = composed([one, two], (0.5, 0.5))
    at = 2 * 7 + 3
    assert found.shape == (5, 7)
    np.testing.assert_allclose(found.flatten(), (second @ first)[at], atol=1e-6)
    assert found.sum() == pytest.approx(1) and (found > 0).all()


@pytest.mark.parametrize('size', [(8, 8), (9, 13), (3, 5)])
def test_pooled_weights_are_spread_over_what_the_keys_are_means_of(size):
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    grids = (1, 3, 6)
    weights = torch.rand(sum(n * n for n in grids), dtype=torch.float64)
    seen = (weights * pyramid_pool(x, grids)[0, 0]).sum()
    found = (spread(weights.numpy(), grids, size) * x[0, 0].numpy()).sum()
    assert found == pytest.approx(seen.item())


def test_pairs_are_thinned_until_they_fit():
    block = PAM(16, 4).eval()
    (_, _, pairs) = collect(block, torch.randn(1, 16, 20, 30)).records[0]
    kept, step = thinned(pairs, 2 * 2 * 4 * 20 * 30)
    assert step == 1 and kept.q.shape == pairs.q.shape
    kept, step = thinned(pairs, 2 * 2 * 4 * 20 * 30 - 1)
    assert step == 2 and kept.q.shape[2:] == kept.k.shape[2:] == (10, 15)
    assert thinned(pairs, 0)[0].q.shape[2:] == (1, 1)


def test_heads_have_a_view_each():
    block = randomise(MHSA(8, heads=2, size=3)).eval()
    twice = nn.Sequential(block, block)
    views = collect(twice, torch.randn(3, 8, *SIZE)).block_views(IMAGE)[0].views
    assert [view.name for view in views] == [
        f'pairwise, use {use} of 2, head {head} of 2' for use in (1, 2) for head in (1, 2)
    ]
    once = collect(block, torch.randn(1, 8, *SIZE)).block_views(IMAGE)[0].views
    assert [view.name for view in once] == ['pairwise, head 1 of 2', 'pairwise, head 2 of 2']
    assert len({view.picture.tobytes() for view in views}) == 4


def test_a_gaussian_keeps_its_map_once():
    block = NonLocal2d(16, mode='gaussian').eval()
    collector = collect(block, torch.randn(1, 16, 4, 4))
    (view,) = collector.block_views(IMAGE)[0].views
    assert 'k' not in view.data['rounds'][0]


def test_heat_is_low_to_high():
    picture = heat(np.array([[0.0, 1.0], [2.0, 2.0]]), 0, 2)
    assert picture.sum(2)[0, 0] < picture.sum(2)[0, 1] < picture.sum(2)[1, 0]
    assert np.array_equal(picture[1, 0], picture[1, 1])
    assert heat(np.ones((2, 2)), 1, 1).shape == (2, 2, 3)


def test_a_transformer_shows_where_it_samples():
    block = SpatialTransformer(16).eval()
    (view,) = collect(block, torch.randn(1, 16, 8, 8)).block_views(IMAGE)[0].views
    assert view.kind == 'outline' and view.data['points'] == [[0, 0], [1, 0], [1, 1], [0, 1]]


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """A page with all rules, and what its pairwise views must show."""
    torch.manual_seed(0)
    model = nn.ModuleDict(pairwise() | {'</script><b>': contract.registered()['CBAM'](16).eval()})
    collector = Collector()
    x = torch.randn(1, 16, *SIZE)
    with torch.no_grad(), watching(model, collector):
        for block in model.values():
            block(x)
    seen = collector.block_views(IMAGE)
    path = tmp_path_factory.mktemp('page') / 'attention.html'
    write_page(path, seen, IMAGE, title='Attention <of> a test', about='9 blocks')
    rounds: dict[str, list] = {}
    for name, _, kept in collector.records:
        if name in pairwise():
            rounds.setdefault(name, []).append(kept)
    expected = []
    for name, uses in rounds.items():
        expected += (
            [uses] if name == 'twice' else [[one] for use in uses for one in use.each_head()]
        )
    return path, expected


def test_a_page_needs_nothing_from_elsewhere(page):
    text = page[0].read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#|\$)[^"]+"|url\(|@import|fetch\(', text)
    assert '</script><b>' not in text and 'Attention \\u003cof>' in text
    assert text.count('</script>') == 2


@pytest.fixture
def opened(page, chromium):
    chromium.get(page[0].as_uri())
    yield chromium, page[1]
    assert chromium.get_log('browser') == []


def test_the_page_computes_what_python_does(opened):
    browser, expected = opened
    assert browser.title == 'Attention <of> a test'
    assert browser.execute_script('return attention.views.length') == len(expected)
    for index, rounds in enumerate(expected):
        for query in QUERIES:
            view = f'attention.views[{index}].weights({list(query)})'
            script = f'const [h, w, v] = {view}; return [h, w, Array.from(v)]'
            height, width, values = browser.execute_script(script)
            wanted = composed(rounds, query)
            assert wanted.shape == (height, width)
            np.testing.assert_allclose(
                np.reshape(values, wanted.shape), wanted, atol=0.02 * np.abs(wanted).max()
            )


def test_a_click_moves_the_query_of_all_maps_and_the_pointer_only_looks(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    browser, expected = opened
    canvas = "document.querySelectorAll('.pairs canvas')"
    drawn = f'return Array.from({canvas}, c => c.toDataURL())'
    caption = "return document.querySelector('.pairs figcaption').textContent"
    before = browser.execute_script(drawn)
    assert len(before) == len(expected) and len(set(before)) == len(before)
    frame = browser.find_elements(By.CSS_SELECTOR, '.pairs .frame')[0]
    width, height = frame.size['width'], frame.size['height']
    to = ActionChains(browser).move_to_element_with_offset(
        frame, round(-0.35 * width), round(-0.35 * height)
    )
    to.perform()
    wait = 'const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))'
    browser.execute_async_script(wait)
    pointed = browser.execute_script(drawn)
    assert pointed[0] != before[0] and pointed[1:] == before[1:]
    assert 'query row 1, column 1 of 9 x 12' in browser.execute_script(caption)
    ActionChains(browser).click().perform()
    browser.execute_async_script(wait)
    after = browser.execute_script(drawn)
    assert after[0] == pointed[0] and all(a != b for a, b in zip(after, before, strict=True))
    row, column = browser.execute_script('return attention.pinned()')
    assert int(row * 9) == 1 and int(column * 12) == 1


def test_rounds_can_be_seen_alone(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    browser, expected = opened
    index = next(i for i, rounds in enumerate(expected) if len(rounds) == 2)
    (choice,) = browser.find_elements(By.TAG_NAME, 'select')
    for value, rounds in {'0': expected[index][:1], '1': expected[index][1:]}.items():
        Select(choice).select_by_value(value)
        values = browser.execute_script(
            f'return Array.from(attention.views[{index}].weights([0.5, 0.5])[2])'
        )
        wanted = composed(rounds, (0.5, 0.5)).flatten()
        np.testing.assert_allclose(values, wanted, atol=0.02 * wanted.max())
        assert np.count_nonzero(values) == sum(SIZE) - 1
