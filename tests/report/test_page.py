"""The report shows what front.json and responses.jsonl say, for any number of objectives, and runs nothing else."""

import base64
import hashlib
import json
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from jinja2 import UndefinedError

from modpo.base.costs import Cost
from modpo.base.errors import InputError
from modpo.base.text import visible
from modpo.front.audit import Audit
from modpo.front.pareto import Score
from modpo.front.schema import FailedPoint, FrontObjective, read_front, write_front
from modpo.report import write_report
from modpo.report.chart import chart
from modpo.report.labels import place_labels
from modpo.report.numbers import interval_text, number
from modpo.report.page import asset, environment, page
from modpo.report.panels import layout
from modpo.report.policies import policies
from modpo.report.responses import read_responses
from tests.report.fronts import OBJECTIVES, Page, make_front, write_responses

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!-- <script>",
    "\x1b[31mred\x1b[0m \x00",
    "before\u2028after\u2029",
    "\u202egnp.exe",
    "\ud800 alone",
    "' onmouseover='alert(1)' \" &lt; ${7*7} {{7*7}}",
]


def html_of(front):
    """The page alone, without the picture behind `<noscript>`."""
    return page(front, read_responses(front), png=b"")


def embedded(html, key):
    """The value of one of the page's data elements."""
    return json.loads(re.search(f'<script type="application/json" id="{key}">(.*?)</script>', html)[1])


def test_what_chooses_among_answers_was_not_trained(tmp_path):
    front = make_front(tmp_path)
    assert "3 policies trained for" in html_of(front)
    chosen = replace(front, points=[replace(point, adapter=None, best_of_n=4) for point in front.points])
    assert "3 policies of best of 4 for" in html_of(chosen)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_picture_and_page_for_any_number_of_objectives(tmp_path, objectives):
    front = make_front(tmp_path, objectives)
    write_front(front)
    write_report(tmp_path)
    png = (tmp_path / "front.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    assert (1200 <= width <= 4000, 900 <= height <= 4000, len(png) > 20_000) == (True, True, True)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "48.9 [45.2, 54.0]" in html
    table = html.split("<h2>Points</h2>")[1]
    assert table.count('scope="row"><span class="swatch"') == 1 + len(front.points)
    assert "there is no responses.jsonl" in html
    visible = sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock")
    assert visible == ["front.csv", "front.json", "front.png", "report.html"]


def test_nothing_is_loaded_and_only_our_scripts_may_run(tmp_path):
    front = make_front(tmp_path)
    write_responses(front, ["p"], lambda policy, i: "https://example.com")
    html = html_of(front)
    seen = Page(html)
    loaded = [attrs[key] for _, attrs in seen.elements for key in ("src", "href", "action", "data") if key in attrs]
    assert all(url.startswith("data:image/png;base64,") for url in loaded)
    assert not {"link", "a", "iframe", "form", "base", "object"} & {tag for tag, _ in seen.elements}
    assert "url(" not in "".join(seen.texts["style"])
    policy = next(a["content"] for a in seen.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert scripts[1:] == [asset("chart.js"), asset("slider.js")]  # after plotly
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_hostile_text_is_shown_not_run(tmp_path):
    front = replace(make_front(tmp_path, 3), failed=[FailedPoint("x", {}, "<script>alert(2)</script>")])
    front = replace(front, evaluation={**front.evaluation, "model": "<img src=x>", "<b>": {"</td>": 1}})
    write_front(front)
    prompts = ["<script>alert(1)</script>", [{"role": "<i>", "content": "</h3><script>"}]]
    write_responses(front, prompts, lambda policy, i: "|".join(HOSTILE))
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    seen = Page(html)
    assert len(seen.all("script")) == 5  # two of data, plotly, and the few lines that draw and steer
    assert len(seen.all("img")) == 1
    assert not [a for _, attrs in seen.elements for a in attrs if a.startswith("on")]
    shown = html.split('<script type="application/json"')[0]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202e]", shown)
    assert all(
        text in shown for text in (r"\x1b[31mred\x1b[0m \x00", r"before\u2028after\u2029", r"\u202egnp", r"\ud800")
    )
    assert "&lt;script&gt;alert(2)" in shown
    assert embedded(html, "chart-data")["data"][1]["name"] == "reference"
    assert "$afe <b> 1" in embedded(html, "slider-data")["policies"][-1]["title"]


def rendered(template, **values):
    return environment().from_string(template).render(values)


def test_templates_escape_what_they_show_and_know_every_name():
    assert environment().autoescape is True
    hostile = "<b title='x' a=\"y\">&\x1b\u202e"
    shown = rendered(
        "{{ x }}|{{ 'a' ~ x }}|{{ [x] | join }}|{% macro m(y) %}{{ y }}{% endmacro %}{{ m(x) }}", x=hostile
    )
    assert not re.search("[<>'\"\x1b\u202e]|&(?!(amp|lt|gt|#3[49]);)", shown)
    assert [unescape(part) for part in shown.split("|")] == [f"{a}{visible(hostile)}" for a in ("", "a", "", "")]
    with pytest.raises(UndefinedError):
        rendered("{{ unheard_of }}")
    with pytest.raises(UndefinedError):
        rendered("{{ x.unheard_of }}", x=OBJECTIVES[0])


def test_no_template_calls_a_text_safe():
    templates = [environment().loader.get_source(environment(), name)[0] for name in environment().list_templates()]
    assert len(templates) > 1
    assert not [text for text in templates if re.search(r"\bsafe\b|autoescape|Markup|\bon\w+=", text)]


def test_embedded_json_cannot_end_its_element_and_reads_back():
    value = {"</script>": ["<!--", "&amp;", "\u2028", "\ud800"]}
    text = rendered("{{ value | tojson }}", value=value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="JSON"):
        rendered("{{ value | tojson }}", value=float("nan"))


def test_invisible_characters_are_spelled_out_and_joiners_kept():
    assert visible("a\r\nb\tc") == "a\nb\tc"
    assert visible("\x07\x9b\u200e\U000e0041") == r"\x07\x9b\u200e\U000e0041"
    assert visible("👩\u200d💻 می\u200cخواهم") == "👩\u200d💻 می\u200cخواهم"


def test_answers_stand_side_by_side_in_the_order_of_weights(tmp_path):
    front = make_front(tmp_path)
    write_responses(front, [f"prompt {i}" for i in range(5)], lambda policy, i: f"{policy} answers {i}")
    html = html_of(replace(front, points=front.points[::-1]))
    assert "The first 3 of 5 prompts" in html
    order = re.findall(r"([\w.-]+) answers (\d)<", html)
    names = ["reference", "positive1-concise0", "positive0.5-concise0.5", "positive0-concise1"]
    assert order == [(policy, str(i)) for i in range(3) for policy in names]


def test_an_answer_is_compared_with_the_references(tmp_path):
    """positive 0.5 is above the reference's 0.2: better. concise, minimised, 0.5 is above 0.2: worse."""
    front = make_front(tmp_path)
    for policy, reward in (("reference", 0.2), (front.points[0].name, 0.5)):
        line = {"policy": policy, "prompt": "p", "response": "r", "rewards": {"positive": reward, "concise": reward}}
        with (tmp_path / "responses.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    html = html_of(front)
    assert '0.5 VADER compound <span class="better">better</span>' in html
    assert '0.5 words <span class="worse">worse</span>' in html
    assert html.count("no answer") == 2


def test_answers_of_a_policy_that_the_front_does_not_know_are_counted(tmp_path):
    front = make_front(tmp_path)
    write_responses(front, ["p"], lambda policy, i: "r")
    with (tmp_path / "responses.jsonl").open("a") as file:
        file.write(json.dumps({"policy": "older", "prompt": "p", "response": "r", "rewards": {}}) + "\n")
    assert "front.json does not know the policy: older (1)" in " ".join(html_of(front).split())


BAD_LINES = [
    (b"{", "not JSON"),
    (b"\xff", "not JSON"),
    (b"[]", "expected an object"),
    (b'{"policy": "reference", "prompt": "p"}', "response: missing"),
    (b'{"policy": "reference", "prompt": "p", "response": null}', "response: expected text"),
    (b'{"policy": "reference", "prompt": [{"role": "user"}], "response": "r"}', "prompt: expected text, or messages"),
    (b'{"policy": "reference", "prompt": "p", "response": "r", "kl": NaN}', "kl: expected a finite number"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path, line, message):
    front = make_front(tmp_path)
    write_front(front)
    write_responses(front, ["p"], lambda policy, i: "r")
    with (tmp_path / "responses.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(InputError, match=rf"responses\.jsonl:5:?.*{message}"):
        write_report(tmp_path)
    assert not (tmp_path / "front.png").exists()
    assert not (tmp_path / "report.html").exists()


def test_failed_points_are_listed_even_if_none_is_left(tmp_path):
    front = make_front(tmp_path)
    failed = [FailedPoint(p.name, p.weights, "NaN at step 3") for p in front.points]
    write_front(replace(front, points=[], failed=failed))
    write_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("NaN at step 3") == 3


def test_a_report_written_twice_is_the_same(tmp_path):
    write_front(make_front(tmp_path))
    write_report(tmp_path)
    first = [(tmp_path / name).read_bytes() for name in ("front.png", "report.html")]
    write_report(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("front.png", "report.html")] == first


def test_panels_hold_the_fronts_numbers_with_better_up_and_right(tmp_path):
    front = make_front(tmp_path, 2, steps=4)
    plan = layout(front)
    assert [(p.x.is_score, p.y.is_score) for p in plan.panels] == [(True, True), (False, True), (False, True)]
    large = plan.panels[0]
    assert (large.x.reversed, large.y.reversed) == (False, True)  # positive is maximised, concise minimised
    assert large.x.values[1:] == [point.scores["positive"].mean for point in front.points]
    assert large.y.low[0] == front.reference.scores["concise"].ci_low
    joined = [policies(front)[i].point for i in large.line]
    assert [point.name for point in joined] == ["positive0-concise1", "positive1-concise0"]  # the non-dominated
    assert plan.panels[1].line == [1, 2, 3, 4, 5]
    assert [policy.mark for policy in policies(front)[:3]] == ["reference", "1 / 0", "0.75 / 0.25"]


@pytest.mark.parametrize(("objectives", "panels", "rows"), [(1, 1, 2), (2, 3, 2), (3, 6, 2), (4, 10, 4), (5, 15, 6)])
def test_every_pair_and_every_objective_has_a_panel_of_its_own(tmp_path, objectives, panels, rows):
    more = [FrontObjective(f"o{i}") for i in range(objectives)]
    front = make_front(tmp_path, 1, steps=1)
    scores = {o.name: Score(0.0, 0.0, 0.0) for o in more}
    front = replace(front, objectives=more, points=[], reference=replace(front.reference, scores=scores))
    plan = layout(front)
    cells = {(p.row, p.column) for p in plan.panels}
    assert (len(plan.panels), len(cells), plan.rows) == (panels, panels, rows)


def test_chart_draws_the_panels(tmp_path):
    write_front(make_front(tmp_path))
    front = read_front(tmp_path)
    drawn = chart(front)
    assert len(drawn["data"]) == 3 * (1 + 4 + 1)  # in each panel the line, four policies and the ring
    point = drawn["data"][2]
    assert (point["x"], point["y"]) == (
        [front.points[0].scores["positive"].mean],
        [front.points[0].scores["concise"].mean],
    )
    assert point["error_x"]["array"] == [pytest.approx(0.08)]
    assert point["error_x"]["arrayminus"] == [pytest.approx(0.05)]
    assert drawn["layout"]["yaxis"]["autorange"] == "reversed"


def test_a_ring_waits_around_every_policy_of_every_panel(tmp_path):
    drawn, plan = chart(make_front(tmp_path)), layout(make_front(tmp_path))
    rings = [trace for trace in drawn["data"] if trace.get("meta") == "ring"]
    assert [(list(ring["x"]), list(ring["y"])) for ring in rings] == [(p.x.values, p.y.values) for p in plan.panels]
    assert [list(ring["marker"]["opacity"]) for ring in rings] == [[0, 0, 0, 0]] * 3


def boxes(points, offsets, sizes):
    centres = points + offsets
    return [(c - s / 2, c + s / 2) for c, s in zip(centres, sizes, strict=True)]


def test_labels_do_not_cover_each_other_or_points_where_there_is_room():
    points = np.array([(100, 100), (112, 104), (124, 100), (112, 92), (395, 295)], dtype=float)
    sizes = np.tile((50.0, 10.0), (5, 1))
    bar = np.array([(60.0, 100.0), (180.0, 100.0)])
    offsets = place_labels(points, sizes, [bar], (0, 0, 400, 300), unit=1.0)
    placed = boxes(points, offsets, sizes)
    for i, (low, high) in enumerate(placed):
        assert (low >= 0).all()
        assert (high <= (400, 300)).all()
        assert not ((points > low) & (points < high)).all(axis=1).any()
        for other_low, other_high in placed[:i]:
            assert not ((low < other_high) & (other_low < high)).all()


def test_numbers_as_a_reader_wants_them():
    assert [number(x) for x in (0.0, -0.51234, 48.26, 999.7, 12345.6, 2e-7)] == [
        "0", "−0.512", "48.3", "1,000", "12,346", "2.00e−07",
    ]  # fmt: skip
    assert interval_text(48.91, 45.2, 54.0) == "48.9 [45.2, 54.0]"
    assert interval_text(0.5, 0.434, 0.5657) == "0.50 [0.43, 0.57]"
    assert interval_text(3.0, 3.0, 3.0) == "3 [3, 3]"


# --- the slider


def audited(front):
    """The front with an audit of each point: undertrained, fine, broken, fine, ..."""
    audits = [
        Audit(0.125, 0.5, 60, 20, "undertrained"),
        Audit(0.9, 0.75, 60, 20, ""),
        Audit(-1.5, 0.25, 6, 2, "broken"),
    ]
    audits += [Audit(1.0, 1.0, 6, 2, "")] * len(front.points)
    points = [replace(point, audit=a) for point, a in zip(front.points, audits, strict=False)]
    return replace(front, points=points)


def test_the_sliders_data_has_one_entry_a_policy_in_the_tables_order(tmp_path):
    front = audited(make_front(tmp_path))
    html = html_of(replace(front, points=front.points[::-1]))
    data = embedded(html, "slider-data")
    titles = ["reference", *(f"positive {w}, concise {v}" for w, v in (("1", "0"), ("0.5", "0.5"), ("0", "1")))]
    assert [entry["title"] for entry in data["policies"]] == titles
    assert [entry["flag"] for entry in data["policies"]] == ["", "undertrained", "", "broken"]
    assert data["policies"][1]["facts"] == [
        ["1.10", "[1.05, 1.18]"], ["95.00", "[94.95, 95.08]"], ["3", "± 0.4"], ["40", "± 2"], ["0.125", "R² 0.50"],
    ]  # fmt: skip
    assert data["policies"][0]["facts"][-1] == ["–", ""]
    assert data["start"] == 2  # even weights
    table = html.split("<h2>Points</h2>")[1]
    assert [title for title in re.findall(r"</span>([^<]*?)(?: <span|</th>)", table) if title in titles] == titles


def test_the_slider_is_hidden_until_its_script_runs_and_absent_where_nothing_can_be_chosen(tmp_path):
    front = make_front(tmp_path)
    assert '<section id="slider" hidden>' in html_of(front)
    assert html_of(front).index("<h2>Points</h2>") < html_of(front).index("<h2>Answers</h2>")
    alone = html_of(replace(front, points=front.points[:1]))
    assert 'id="slider"' not in alone
    assert asset("slider.js") not in alone


def test_the_control_suits_the_number_of_objectives(tmp_path):
    html = html_of(make_front(tmp_path, 2, steps=4))
    assert Page(html).all("input")[0].items() >= {"type": "range", "min": "1", "max": "5"}.items()
    assert '<label for="weights">' in html
    html = html_of(make_front(tmp_path, 4))
    options = Page(html).all("option")
    assert [option["value"] for option in options] == [str(i) for i in range(1, 11)]
    assert '<label for="weights">' in html


def test_a_point_stands_in_the_triangle_where_its_weights_say(tmp_path):
    """Each objective alone is a corner of an equilateral triangle; equal halves of two are the middle of a side."""
    seen = Page(html_of(make_front(tmp_path, 3)))
    place = {
        tuple(policy.point.weights.values()): np.array([float(dot["cx"]), float(dot["cy"])])
        for policy, dot in zip(policies(make_front(tmp_path, 3))[1:], seen.all("circle"), strict=True)
    }
    corners = [place[1, 0, 0], place[0, 1, 0], place[0, 0, 1]]
    sides = [np.linalg.norm(corners[i] - corners[i - 1]) for i in range(3)]
    assert sides == pytest.approx([sides[0]] * 3, abs=0.02)
    assert place[0.5, 0.5, 0] == pytest.approx((corners[0] + corners[1]) / 2, abs=0.02)
    assert place[0, 0.5, 0.5] == pytest.approx((corners[1] + corners[2]) / 2, abs=0.02)
    control = next(a for a in seen.all("svg") if a["id"] == "weights")
    assert (control["role"], control["tabindex"], control["aria-valuemax"]) == ("slider", "0", "6")


def test_an_audit_is_shown_and_what_it_found_is_flagged(tmp_path):
    front = make_front(tmp_path)
    assert "audit</th>" not in html_of(front)
    table = html_of(audited(front)).split("<h2>Points</h2>")[1].split("</section>")[0]
    rows = [re.sub(r"<[^>]+>", " ", row) for row in re.findall("<tr.*?</tr>", table)[1:]]
    assert "–" in rows[0]
    assert [re.search(r"\S+\s+R² \S+", row)[0].split() for row in rows[1:]] == [
        ["0.125", "R²", "0.50"], ["0.9", "R²", "0.75"], ["−1.5", "R²", "0.25"],
    ]  # fmt: skip
    assert [re.findall("undertrained|broken", row) for row in rows] == [[], ["undertrained"], [], ["broken"]]
    assert "held-out answers" in table


def test_one_training_for_all_points_is_said_once(tmp_path):
    front = make_front(tmp_path)
    assert "one training" not in html_of(front)
    html = html_of(replace(front, continuous=Cost(311.0, 29_260)))
    assert "All come from one training, of a continuous policy, which took 5 min 11 s and 29,260 tokens." in html
    assert html.count("1 h 2 min") == 0  # what each point says it took
    assert html_of(front).count("1 h 2 min") == 3


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def browse(html, folder, address="", script=""):
    """The page's elements after a browser has run it, and then `script`, which the page's policy is made to allow."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = html.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    before, after = html.rsplit("</body>", 1)
    file = folder / "browsed.html"
    file.write_text(f"{before}<script>{script}</script></body>{after}", encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    run = subprocess.run([*command, file.as_uri() + address], capture_output=True, timeout=120, check=True)
    assert not re.search("Uncaught|Refused|violates", run.stderr.decode())
    return run.stdout.decode()


def chosen_row(html):
    row = re.search(r'<section id="slider".*?<tbody>\s*<tr.*?>(.*?)</tr>', html, re.DOTALL)[1]
    texts = (unescape(text).strip() for text in re.split(r"<[^>]+>", row))
    return [text for text in texts if text]


def shown_cards(html):
    """The policies whose answers are shown, as often as there are prompts."""
    cards = [dict(attrs) for tag, attrs in Page(html).elements if tag == "div" and "data-policy" in attrs]
    return [int(card["data-policy"]) for card in cards if "hidden" not in card]


def expected_row(html, i):
    entry = embedded(html, "slider-data")["policies"][i]
    return [entry["title"], *([entry["flag"]] if entry["flag"] else []), *(t for f in entry["facts"] for t in f if t)]


# Moves the control, then writes down which ring is seen.
REPORT = (
    "drawn.then(() => { document.body.dataset.rings = rings.map((i) => chart.data[i].marker.opacity).join('|'); });"
)
RANGE = """
const slider = document.getElementById("weights");
slider.value = slider.min;
for (const kind of ["input", "change"]) slider.dispatchEvent(new Event(kind));
"""
SELECT = RANGE.replace("slider.min", '"7"')
KEYS = """
const slider = document.getElementById("weights");
for (const key of ["Home", "ArrowDown", "ArrowDown", "ArrowRight"]) {
  slider.dispatchEvent(new KeyboardEvent("keydown", {key}));
}
"""
POINTER = """
const slider = document.getElementById("weights");
const dots = slider.querySelectorAll("circle");
function point(kind, dot, buttons) {
  const box = dot.getBoundingClientRect();
  const at = {clientX: box.right + 2, clientY: box.top, pointerId: 1, buttons};
  slider.dispatchEvent(new PointerEvent(kind, at));
}
point("pointerdown", dots[0], 1);
point("pointermove", dots[3], 1);
point("pointerup", dots[3], 0);
point("pointermove", dots[1], 0);
"""


@pytest.mark.slow
@in_browser
@pytest.mark.parametrize(
    ("objectives", "moves", "reached"),
    [(2, RANGE, 3), (3, KEYS, 5), (3, POINTER, 4), (4, SELECT, 7)],
    ids=["range", "keys", "pointer", "select"],
)
def test_moving_the_slider_shows_that_point_and_no_other(tmp_path, objectives, moves, reached):
    """Down twice from the triangle's top (1) is its left corner (4); right of that is the middle of the side (5)."""
    front = audited(make_front(tmp_path, objectives))
    write_responses(front, ["a", "b"], lambda policy, i: f"{policy} answers {i}")
    html = html_of(front)
    shown = browse(html, tmp_path, script=f"{moves}{REPORT}")
    assert chosen_row(shown) == expected_row(html, reached)
    assert shown_cards(shown) == [0, reached] * 2
    seen = ",".join(str(int(i == reached)) for i in range(len(front.points) + 1))
    panels = {2: 3, 3: 6, 4: 10}[objectives]
    assert f'data-rings="{"|".join([seen] * panels)}"' in shown
    if objectives < 4:
        title = embedded(html, "slider-data")["policies"][reached]["title"]
        assert f'aria-valuetext="{title}' in unescape(shown)


@pytest.mark.slow
@in_browser
def test_the_chart_offers_no_button_that_sends_data(tmp_path):
    script = "drawn.then(() => { document.body.dataset.server = JSON.stringify(chart._context.plotlyServerURL); });"
    shown = Page(browse(html_of(make_front(tmp_path)), tmp_path, script=script))
    buttons = [a["data-title"] for _, a in shown.elements if "modebar-btn" in a.get("class", "")]
    assert buttons == ["Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]
    assert shown.all("body")[0]["data-server"] == '""'


@pytest.mark.slow
@in_browser
def test_an_address_chooses_a_point_and_what_it_cannot_choose_is_passed_over(tmp_path):
    front = make_front(tmp_path)
    write_responses(front, ["a"], lambda policy, i: "r")
    html = html_of(front)
    shown = browse(html, tmp_path, "#point=3", script='document.getElementById("every-policy").click();')
    assert chosen_row(shown) == expected_row(html, 3)
    assert shown_cards(shown) == [0, 1, 2, 3]
    assert '<section id="slider">' in shown  # no longer hidden
    script = """
    document.body.dataset.first = document.querySelector("#slider tbody th").textContent;
    location.hash = "#point=1";
    setTimeout(() => { location.hash = "#point=4"; }, 100);
    """
    shown = browse(html, tmp_path, "#point=0", script)
    assert f'data-first="{expected_row(html, 2)[0]}"' in shown  # 0 is no point: where it begins
    assert chosen_row(shown) == expected_row(html, 1)  # neither is 4
