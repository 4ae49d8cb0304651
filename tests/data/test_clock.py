"""One date for a whole run, in templates that write today's."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modpo.base.errors import InputError
from modpo.data.clock import DATE_FILE, Clock, save_tokenizer
from modpo.data.tokens import identity

TODAY = (  # like Llama 3.2's
    "  {% if not date is defined %}{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date = 'never' %}{% endif %}{% endif %}\nIt is {{ date }}"
    "{% macro hour() %}{{ strftime_now('%H:%M, %-d') }}{% endmacro %} {{ hour() }}\n"
    "{% for m in messages %}{{ m.content }}\n{% endfor %}"
)
PLAIN = "{%set x = 1 %}{%- for m in messages %}{{ m.content }}{% endfor %} 5%d"
DAY = dt.date(2026, 11, 7)
MESSAGES = [{"role": "user", "content": "Hi"}]


def tokenizer(template: Any) -> PreTrainedTokenizerFast:
    alphabet = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    made.chat_template = template
    return made


@pytest.fixture
def days_later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Moves the clocks of the templates and of the library."""
    from transformers.utils import chat_template_utils as theirs

    import modpo.data.clock as ours

    def move(days: int) -> None:
        class Moved(dt.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return dt.datetime.combine(DAY, dt.time()) + dt.timedelta(days=days)

        class MovedDate(dt.date):
            @classmethod
            def today(cls) -> Any:
                return DAY + dt.timedelta(days=days)

        monkeypatch.setattr(theirs, "datetime", Moved)
        monkeypatch.setattr(ours, "date", MovedDate)

    return move


def rendered(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> Any:
    return tokenizer.apply_chat_template(MESSAGES, tokenize=False, **settings)


def test_the_clock_stands_as_the_moving_one_stood(tmp_path: Path, days_later: Any) -> None:
    """The text is the one that the template writes by itself at that date, white space included."""
    for days in (0, 40):
        days_later(days)
        free = tokenizer(TODAY)
        held = Clock(tmp_path / str(days), writes=True).stop(free)
        days_later(80)
        assert rendered(held) != rendered(free)
        days_later(days)
        assert rendered(held) == rendered(free)
    assert rendered(held, date="then") == rendered(free, date="then")


def test_the_first_command_keeps_the_date(tmp_path: Path, days_later: Any) -> None:
    days_later(0)
    Clock(tmp_path / "run").stop(tokenizer(TODAY))
    assert not (tmp_path / "run").exists()  # it only looks
    first = Clock(tmp_path / "run", writes=True).stop(tokenizer(TODAY))
    days_later(40)
    later = Clock(tmp_path / "run", writes=True).stop(tokenizer(TODAY))
    looking = Clock(tmp_path / "run").stop(tokenizer(TODAY))
    assert rendered(first) == rendered(later) == rendered(looking)
    assert "07 Nov 2026" in rendered(first)
    assert identity(first, 9, None) == identity(later, 9, None)
    assert identity(Clock().stop(tokenizer(TODAY)), 9, None) != identity(first, 9, None)


def test_a_template_without_a_clock_is_as_it_was(tmp_path: Path, days_later: Any) -> None:
    given = tokenizer(PLAIN)
    assert Clock(tmp_path / "run", writes=True).stop(given) is given
    assert not (tmp_path / "run").exists()
    assert Clock().stop(tokenizer(None)).chat_template is None


def test_only_what_is_written_counts(tmp_path: Path, days_later: Any) -> None:
    """A template that writes the month is the same template all month long."""
    monthly = "{{ strftime_now('%B %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    kept = []
    for days in (0, 5, 40):
        days_later(days)
        kept.append(identity(Clock().stop(tokenizer(monthly)), 9, None))
    assert kept[0] == kept[1] != kept[2]


def test_a_saved_tokenizer_sees_the_time_again(tmp_path: Path, days_later: Any) -> None:
    days_later(0)
    held = Clock().stop(tokenizer({"default": TODAY, "other": PLAIN}))
    assert set(held.chat_template) == {"default", "other"}
    save_tokenizer(held, tmp_path / "saved")
    read = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    assert read.chat_template == {"default": TODAY, "other": PLAIN}
    days_later(3)
    assert "10 Nov 2026" in rendered(read)
    assert "07 Nov 2026" in rendered(held)


def test_a_damaged_date_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATE_FILE).write_text("{}")
    with pytest.raises(InputError, match=r"chat_date.json:date: holds no date; fix: write"):
        Clock(tmp_path).stop(tokenizer(TODAY))


@pytest.mark.parametrize("said", [{}, {"date_format": "%A, %-d %B %Y, day %j"}])
def test_a_format_that_is_given_is_filled_in(said: dict[str, str], days_later: Any) -> None:
    asks = "{{ strftime_now(date_format or '%d/%m/%y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    days_later(0)
    moving = tokenizer(asks)
    expected = moving.apply_chat_template(MESSAGES, tokenize=False, **said)
    assert Clock().stop(moving).apply_chat_template(MESSAGES, tokenize=False, **said) == expected
    days_later(1)
    assert moving.apply_chat_template(MESSAGES, tokenize=False, **said) != expected
