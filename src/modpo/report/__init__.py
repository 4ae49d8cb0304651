"""The report of a sweep's folder: `front.png`, a picture, and `report.html`, one static file."""

from __future__ import annotations

from pathlib import Path

from modpo.base.files import locked, new_file, remove_leftovers
from modpo.base.progress import working
from modpo.front.schema import read_front

__all__ = ["write_report"]


@working("the report, drawn")
def write_report(folder: Path) -> None:
    """Read `front.json` and, if they are there, `responses.jsonl` and `ledger.json`; write `front.png`, `report.html`.

    Raises:
        InputError: one of the two files is broken (nothing is written), or there is no front.
        EnvironmentFault: another process is at work on the sweep.
    """
    from modpo.front.ledger import read_ledger
    from modpo.report.page import page
    from modpo.report.picture import picture
    from modpo.report.responses import read_responses

    front = read_front(folder)
    responses = read_responses(front)
    png = picture(front)
    html = page(front, responses, png, read_ledger(Path(folder)))
    with locked(Path(folder)):
        remove_leftovers(Path(folder))
        for name, content in (("front.png", png), ("report.html", html.encode())):
            with new_file(Path(folder) / name) as temporary:
                temporary.write_bytes(content)
