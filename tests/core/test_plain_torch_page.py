"""The page for plain torch, with the oldest torch and numpy alone, too."""

from mmattn.plugins import named_plugins
from tests.libraries.checks import run_page


def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_page('plain_torch')
    assert len(list(named_plugins(names['model']))) == 5
    printed = capsys.readouterr().out
    assert (
        "['layer1.0.cbam', 'layer1.1.cbam'" in printed and 'torch.Size([1, 64, 16, 24])' in printed
    )
