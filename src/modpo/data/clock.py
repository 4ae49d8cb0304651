"""The date that chat templates see: one for a whole run.

Templates that write today's date call `strftime_now`. Were it another day in a later command, policies of one front
would answer other prompts than those before them. So the first command that renders such a template writes the date
into the output folder, and from then on the template gets that date, whoever renders it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.errors import InputError, Problem
from modpo.base.files import new_file
from modpo.data.chat_template import parsed, template_variables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE_FILE = "chat_date.json"
ASKS = "strftime_now"  # transformers' function by which a template asks for the time
_OPENING = "{% macro strftime_now(format) %}{% set ns = namespace(text=format) %}"
# A directive of strftime; `{%s` and `{%-s` begin a Jinja statement.
_DIRECTIVE = re.compile(r"(?<!\{)%-?[A-Za-z]")
_DIRECTIVES = [f"%{dash}{letter}" for dash in ("", "-") for letter in "aAbBcCdDeFgGhHIjklmMnpPrRSTuUVwWxXyYZ"]


@dataclass(frozen=True)
class Clock:
    """A clock that stands still.

    Args:
        folder: where the date is kept; None: nowhere, it is today's.
        writes: write the date there when it is asked for and not there yet.
    """

    folder: Path | None = None
    writes: bool = False

    @cached_property
    def day(self) -> date:
        """The date of the folder, else today's.

        Raises:
            InputError: the folder's file holds no date.
        """
        if self.folder is None:
            return date.today()
        path = self.folder / DATE_FILE
        if self.writes:
            _keep(self.folder, date.today())
        return _read(path) if path.exists() else date.today()

    def stopped(self, template: str) -> str:
        """A chat template that sees the clock's day, at midnight. One that does not ask for the time is as it was."""
        if ASKS not in template_variables(template):
            return template
        moment = datetime.combine(self.day, time())
        found = _DIRECTIVE.findall(template) if _writes_its_formats(template) else _DIRECTIVES
        used = sorted(set(found), key=len, reverse=True)
        written = json.dumps({directive: moment.strftime(directive) for directive in used})
        replace = "{% for d, w in " + written + ".items() %}{% set ns.text = ns.text.replace(d, w) %}{% endfor %}"
        return f"{_OPENING}{replace}{{{{ ns.text }}}}{{% endmacro %}}\n{template}"

    def stop(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """The tokenizer, or, where its template asks for the time, a copy whose template sees the clock's day."""
        return _changed(tokenizer, self.stopped)


def _writes_its_formats(template: str) -> bool:
    """Whether each format of a date stands in the template, where it asks: others may come from anywhere."""
    from jinja2 import nodes

    calls = [call for call in parsed(template).find_all(nodes.Call) if getattr(call.node, "name", None) == ASKS]
    return all(call.args and isinstance(call.args[0], nodes.Const) for call in calls)


TODAY = Clock()


def share_date(folder: Path, others: Iterable[Path]) -> None:
    """Keep the date of one folder, if it has one, in others that have none yet."""
    if (folder / DATE_FILE).exists():
        for other in others:
            _keep(other, _read(folder / DATE_FILE))


def _keep(folder: Path, day: date) -> None:
    path = folder / DATE_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            temporary.write_text(json.dumps({"date": day.isoformat()}) + "\n", "utf-8")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`save_pretrained`, for people who serve a model: its template sees the time again."""
    _changed(tokenizer, _running).save_pretrained(folder)


def _running(template: str) -> str:
    return template.partition("\n")[2] if template.startswith(_OPENING) else template


def _changed(tokenizer: PreTrainedTokenizerBase, change: Callable[[str], str]) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy with another template, or others, where it has several by name."""
    given: Any = tokenizer.chat_template
    several = given if isinstance(given, dict) else {"default": given or ""}
    changed = {name: change(template) for name, template in several.items()}
    if changed == several:
        return tokenizer
    twin = copy.copy(tokenizer)
    twin.chat_template = changed if isinstance(given, dict) else changed["default"]
    return twin


def _read(path: Path) -> date:
    try:
        return date.fromisoformat(json.loads(path.read_text("utf-8"))["date"])
    except (ValueError, TypeError, KeyError) as error:
        fix = 'write {"date": "2026-01-31"}, the day on which the run began'
        raise InputError(Problem(str(path), "date", "holds no date", fix)) from error
