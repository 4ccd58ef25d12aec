"""What the lessons show: strips, rounds, explorers, the environment check; and the course's style everywhere."""

import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import specdec_ref as sd
from specdec_lab import plotting
from specdec_lab.teaching.environment import check_environment
from specdec_lab.teaching.figures import acceptance_figure, round_figure
from specdec_lab.teaching.replay import PlayedRound, replay
from specdec_lab.teaching.speedup import MAX_K, speedup_explorer, speedup_figure
from specdec_lab.teaching.strip import stream_strip, token_strip
from specdec_lab.teaching.widgets import acceptance_explorer, round_player
from specdec_ref.errors import SpecdecError


def played(accepted: int, next_from: list[float], next_token: int) -> PlayedRound:
    return PlayedRound(1, (0, 1), (0.5, 0.004), (1.0, 0.2), (0.1, 0.9), accepted, torch.tensor(next_from), next_token)


def titles(figure: Any) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_a_stream_ends_as_the_strip_of_its_generation(pair: Any, capsys: Any) -> None:
    """Outside a notebook it is printed once, at the end."""
    arguments = {"k": 3, "max_new_tokens": 20, "seed": 1}
    streamed = stream_strip(pair, "the rest of it", **arguments)
    whole = sd.generate_speculative(pair, "the rest of it", **arguments)
    assert streamed.tokens == whole.tokens
    assert capsys.readouterr().out == f"{token_strip(whole.rounds, pair.tokenizer)}\n"


def test_every_token_state_has_a_mark_as_well_as_a_color(pair: Any) -> None:
    rounds = sd.generate_speculative(pair, "the rest of it", k=2, max_new_tokens=60, seed=1).rounds
    strip = token_strip(rounds, pair.tokenizer, prompt="<b>")
    page = strip._repr_html_()
    assert "&lt;b&gt;" in page
    for mark in (plotting.REJECTED_MARK, plotting.BONUS_MARK, "underline", "line-through"):
        assert mark in page
    assert str(strip).count("→") == sum(r.accepted < len(r.drafted) for r in rounds if len(r.emitted) > r.accepted)


def test_a_round_shows_its_verdict_and_where_its_last_token_came_from() -> None:
    figure = round_figure(played(1, [0.7, 0.0, 0.2, 0.1], 3), "abcd".__getitem__, num_shown=2)
    assert titles(figure) == ["Round 1: 1 of 2 accepted", "From the residual: 'd'"]
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["✓", "✗"]
    assert [label.get_text() for label in right.get_yticklabels()] == ["'a'", "'d'"]  # the sampled one is always shown
    assert "q = 0.004" in left.get_xticklabels()[1].get_text()


def test_a_round_of_accepted_tokens_ends_with_the_bonus() -> None:
    figure = round_figure(played(2, [0.1, 0.9], 1), "ab".__getitem__)
    assert titles(figure) == ["Round 1: 2 of 2 accepted", "★ bonus token: 'b'"]


def test_distributions_that_are_none_are_refused() -> None:
    with pytest.raises(SpecdecError, match="two distributions"):
        acceptance_figure([0.5, 0.6], [0.5, 0.5])
    with pytest.raises(SpecdecError, match="entries"):
        acceptance_figure([0.5, 0.5], [1.0])


def test_the_speedup_figure_says_the_best_k() -> None:
    assert titles(speedup_figure(0.7, 0.1)) == ["Draft 4 tokens: 1.98 times as fast"]
    assert titles(speedup_figure(0.2, 0.5, 0.3)) == ["Do not draft: every k is slower than none"]
    (gains,) = [line for line in speedup_figure(0.7, 0.1).axes[0].lines if len(line.get_xdata()) == MAX_K + 1]
    assert gains.get_ydata()[4] == pytest.approx(float(sd.predicted_speedup(0.7, 4, 0.1)))
    with pytest.raises(SpecdecError, match="growth=-1"):
        speedup_figure(0.7, 0.1, growth=-1)


def test_an_explorer_has_a_picture_and_words_for_front_ends_that_cannot_move_it(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    acceptance_explorer()
    speedup_explorer(alpha=1.7, c=0.3)  # a start beyond the slider's end is moved to it
    round_player(replay(pair, "the rest", k=2, rounds=2), pair.tokenizer)
    assert len(shown) == 3
    for data in shown:
        assert data["image/png"]
        assert "explorer" in data["text/plain"]
        assert "application/vnd.jupyter.widget-view+json" in data


def test_the_environment_here_is_ready() -> None:
    found = check_environment()
    assert found.ready, found
    assert "models that ship" in str(found)


def test_without_torch_the_environment_check_says_so_and_what_to_do() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from specdec_lab.teaching.environment import check_environment\n"
        "found = check_environment(); print(found); assert not found.ready"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "✗ torch (the models): not installed  → run `make lab`" in ran.stdout


def test_what_is_added_to_a_figure_later_is_in_the_course_s_style() -> None:
    figure, axes = plotting.new_figure("t")
    axes.plot([0, 1], label="one")
    assert not axes.legend().get_frame_on()
    axes.set_title("other")
    assert titles(figure) == ["other"]


def test_words_of_the_strip_can_be_read_on_white_and_on_a_dark_theme() -> None:
    """Contrast as WCAG 2 defines it, of every color that its words have."""

    def luminance(color: str) -> float:
        parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    colors = set(re.findall(r"color:(#\w{6})", token_strip([], None)._repr_html_()))
    assert len(colors) == 3
    for color in colors:
        assert 1.05 / (luminance(color) + 0.05) >= 4.5
        assert (luminance(color) + 0.05) / (luminance("#111111") + 0.05) >= 4
