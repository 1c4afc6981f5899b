"""The HTML page of `riq report`: complete in itself, harmless with hostile names, and alive in a real browser."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from riq_cli.archive import Archive, LayerEntry, Manifest, SkeletonEntry, deflate
from riq_cli.entropy.histogram import Histogram, Table, encode_symbols
from riq_cli.report import page, verification_page
from riq_cli.report.figures import Axis, trace
from riq_cli.report.histogram import histogram, histograms
from riq_cli.text import tick
from tests.command import riq

GOLDENS = Path(__file__).parent / "goldens"
HOSTILE = "</td><script>alert(1)</script>\"'&\x1b[31m"
RESULT = {
    "k": 300.0, "epsilon": 0.0, "allocation": "blend", "rounding": "compensated", "deviation": 0.009, "worst": 0.04,
    "standard_error": 0.00087, "holdout": 0.008, "holdout_standard_error": 0.0016, "holdout_samples": 16,
    "evaluations": 9, "probes": 4,
    "trace": [[679.0, 0.0017], [279.0, 0.0114], [300.0, 0.009]],
    "measured": [{"name": "logits", "mean": 0.009, "worst": 0.04, "samples": 64, "standard_error": 0.00087}],
    "top1": [{"name": "logits", "samples": 64, "choices": 64, "kept": 62}],
    "holdout_top1": [{"name": "logits", "samples": 16, "choices": 16, "kept": 16}],
}  # fmt: skip


def layer(name: str, symbols: np.ndarray, op: str = "Conv", place: int = 0) -> tuple[LayerEntry, list[bytes]]:
    counted = Histogram.of(symbols.astype(np.int32))
    table = Table.of(counted)
    sections = [table.to_bytes(), *encode_symbols(symbols.astype(np.int32), table)]
    entry = LayerEntry(name, op, (f"graph.initializer[{place}]",), "float32", (symbols.size,), "ans",
                       counted.symbols.size, 2.0, len(sections[0]), (len(sections[1]),), 0, 0.1)  # fmt: skip
    return entry, sections


def archive(*names: str, result: dict[str, object] = RESULT) -> Archive:
    """An archive of one layer for each name, of 100, 200, 300 … weights."""
    generator = np.random.default_rng(0)
    layers = [
        layer(name, np.rint(generator.normal(0, 3, 100 * number)), "Gemm" if "dense" in name else "Conv", number)
        for number, name in enumerate(names, 1)
    ]
    return built(layers, result)


def built(layers: list[tuple[LayerEntry, list[bytes]]], result: dict[str, object] = RESULT) -> Archive:
    stored = deflate(b"skeleton")
    manifest = Manifest(
        SkeletonEntry(len(stored), 8, 0),
        tuple(entry for entry, _ in layers),
        source={"bytes": 100_000, "sha256": "ab" * 32},
        calibration={"kind": "npz", "samples": 64, "sha256": "cd" * 32},
        settings={"deviation": 0.01, "exclude": ["*<b>*"]},
        result=result,
        creator="riq 0.1.0",
    )
    return Archive.build(manifest, [stored, *(section for _, sections in layers for section in sections)])


class Tree(HTMLParser):
    """What a page holds: its tags, the rows of the layers' table, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[tuple[str, bool]] = []  # name, shown
        self.headers: list[str] = []  # aria-sort
        self.text = ""
        self._name = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.attributes += attrs
        if "data-bytes" in given:
            self.rows.append(("", "hidden" not in given))
        if "aria-sort" in given:
            self.headers.append(str(given["aria-sort"]))
        if tag != "wbr":
            self._name = tag == "td" and given.get("class") == "name"

    def handle_endtag(self, tag: str) -> None:
        self._name = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._name:
            self.rows[-1] = (self.rows[-1][0] + data, self.rows[-1][1])


# ---- without a browser ----


def test_the_page_needs_nothing_else() -> None:
    text = page(archive("first", "dense"), "model.riqz")
    tree = Tree(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(tree.tags)
    assert not {"src", "href", "action", "onclick", "onload", "srcset"} & {name for name, _ in tree.attributes}
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text
    assert text.count("<script") == 1
    assert "default-src 'none'" in text


def test_the_page_tells_the_totals_the_layers_and_how_to_make_it_again() -> None:
    made = archive("first", "dense")
    text = page(made, "model.riqz").replace("&nbsp;%", " %")
    tree = Tree(text)
    assert [name for name, _ in tree.rows] == ["dense", "first"]  # the larger one first
    assert f"×{100_000 / made.size:.2f}" in text
    assert "± 0.00087; target 0.01; relative error 13 %; worst sample 0.04; " in text
    assert "held out 0.008 ± 0.0016 (relative error 13 %)" in text
    assert "<dd>96.9 % <small>62 of 64 choices (95 % interval 89.3 to 99.1 %); at logits; " in text
    assert "held out 16 of 16 choices, 100 % (95 % interval 80.6 to 100 %)</small>" in text
    assert "0.009 ± 0.00087 (relative error 13 %), worst sample 0.04 at logits" in text
    assert "riq compress MODEL --calibration DATA --deviation 0.01 --exclude '*<b>*'" in tree.text
    assert text.count('<circle class="holds"') == 3  # two points that hold, and the key
    assert text.count('<path class="misses"') == 2  # one that does not, and the key
    assert text.count('<line class="target"') == 2 and "target 0.01</li>" in text
    assert "Deviation at each k of the blend allocation with compensated rounding" in text
    assert "<code>blend allocation, compensated rounding, k = 300, epsilon = 0; 9 evaluations, 4 probes" in text


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"trace": [[1, 0], [1e-30, 2]], "k": 1e-30, "deviation": 0, "measured": []},
        {"trace": [[1.0, 1e-300], [1e30, 1.0]], "k": 1e-29, "deviation": 1e30},
        {"trace": [[10.0, 0.5]], "k": 10.0, "deviation": 0.5},
    ],
)
def test_results_at_the_ends_of_the_schema_still_make_a_page(result: dict[str, object]) -> None:
    text = page(archive("first", result=result), "model.riqz")
    assert [name for name, _ in Tree(text).rows] == ["first"]
    assert "nan" not in "".join(re.findall(r'(?:cx|cy|x1|y1|x2|y2|d)="([^"]*)"', text))


def test_what_an_archive_does_not_tell_is_a_dash_and_what_it_does_not_hold_is_told() -> None:
    text = page(archive("first").described(calibration={"sha256": "cd" * 32}), "model.riqz")
    assert "<code>– samples, –, SHA-256 cd" in text and "None" not in text
    text = page(archive(result={}), "model.riqz")
    assert "Nothing was coded: all of the model is in the skeleton." in text
    assert '<table class="layers">' not in text


def test_a_histogram_holds_the_shares_of_the_counts() -> None:
    entry, _ = layer("w", np.arange(2))
    found = histogram(entry, {-1: 100, 0: 400, 1: 225, 3: 25})
    assert (found.first, found.step, found.beyond) == (-1, 1, 0)
    assert found.fractions == (100 / 750, 400 / 750, 225 / 750, 0.0, 25 / 750)
    assert found.zero == 400 / 750


def test_outliers_do_not_squeeze_a_histogram() -> None:
    entry, _ = layer("w", np.arange(2))
    found = histogram(entry, dict.fromkeys(range(-200, 201), 100) | {-1_000_000: 1, 2_000_000: 1})
    assert (found.first, found.step, len(found.fractions)) == (-204, 6, 68)
    assert found.beyond == pytest.approx(2 / 40_102)
    assert sum(found.fractions) + found.beyond == pytest.approx(1)


def test_the_largest_layers_of_symbols_have_pictures() -> None:
    text = page(archive(*(f"w{number}" for number in range(9))), "model.riqz")
    assert re.findall(r'<figcaption><span class="name" title="(w\d)"', text) == ["w8", "w7", "w6", "w5", "w4", "w3"]
    found = histograms(Archive.open(GOLDENS / "v1-scales.riqz"), 9)
    assert [one.layer.name for one in found] == [
        "conv",
        "matrix",
        "every weight",
        "axis between",
        "far",
    ]  # not: constant


def test_symbols_without_a_table_are_counted_too() -> None:
    golden = Archive.open(GOLDENS / "v1-student.riqz")
    [found] = histograms(golden, 1)
    assert (found.layer.name, found.layer.coding) == ("rows and columns", "student")
    assert sum(found.fractions) + found.beyond == pytest.approx(1)
    text = page(golden, "model.riqz")
    assert text.count("<figure>") == 6
    assert "2,000 weights, 95 symbols in use" in text


def test_codes_are_a_column() -> None:
    found = []
    for name in ("v1-scales.riqz", "v1-classes.riqz", "v1-student.riqz"):
        found += re.findall(r'<td class="codes">([^<]*)<', page(Archive.open(GOLDENS / name), name))
    assert [found[number] for number in (0, 6, 7, 9, 11)] == [
        "scales 12+45", "scales 50, classes 24", "classes 40", "–", "magnitudes 40+50"
    ]  # fmt: skip


def test_a_long_name_is_shortened_in_the_middle_and_whole_in_its_title() -> None:
    name = "encoder/layers.11/" + "self_attention/" * 4 + "query.weight"
    text = page(archive(name), "model.riqz")
    assert f'<td class="name" title="{name}">encoder/<wbr>layers.<wbr>11/<wbr>self_<wbr>att' in text
    assert Tree(text).rows == [("encoder/layers.11/self_atte…self_attention/query.weight", True)]
    assert '<td class="name">short</td>' in page(archive("short"), "model.riqz")


def test_ticks_are_written_as_people_write_them() -> None:
    values = (0, 0.002, -500, 99999, 200_000, -1e6, 2e-5, 1e-5, 0.0001)
    assert " ".join(map(tick, values)) == "0 0.002 −500 99999 2·10⁵ −10⁶ 2·10⁻⁵ 10⁻⁵ 0.0001"


def test_ticks_are_round_numbers() -> None:
    assert Axis(0.0009, 1.2, 0, 1, log=True).ticks(7) == pytest.approx([0.001, 0.01, 0.1, 1])
    assert Axis(0.0015, 0.012, 0, 1, log=True).ticks(7) == pytest.approx([0.002, 0.005, 0.01])
    assert Axis(280, 740, 0, 1, log=True).ticks(9) == pytest.approx([300, 400, 500, 600, 700])
    assert Axis(1210, 1490, 0, 1, log=True).ticks(9) == pytest.approx([1250, 1300, 1350, 1400, 1450])
    assert Axis(0.00017, 0.00028, 0, 1, log=True).ticks(5) == pytest.approx([0.0002, 0.00025])
    assert Axis(0, 0.56, 0, 1).ticks(5) == pytest.approx([0, 0.2, 0.4])
    assert Axis(-4.5, 4.5, 0, 1).ticks(6) == pytest.approx([-4, -2, 0, 2, 4])


def test_a_search_that_began_far_off_leaves_room_for_what_is_near_the_solution() -> None:
    near = [(250.0, 0.013), (280.0, 0.011), (300.0, 0.009)]
    far = [(1e6, 1e-9), (300.0, 0.8)]
    text = trace([*near, *far], [], 0.01, near[-1])
    assert text.count('<g class="far">') == 2
    xs = [float(x) for x in re.findall(r'<circle class="(?:holds|chosen)" cx="([^"]*)"', text)]
    assert 0.2 * 520 < min(xs) < 0.5 * 520 < max(xs) < 520  # up to four times k


def test_a_search_under_a_constraint_has_a_linear_axis_and_its_outliers_at_the_edge() -> None:
    points = [(100.0, 40.0), (200.0, 0.3), (250.0, 0.1), (300.0, -0.02), (310.0, 0.2), (1e5, 0.0)]
    text = trace(points, [], 0.05, (300.0, -0.02), "constraint")
    assert text.count('<g class="far">') == 2  # 40, and k = 1e5
    heights = [float(y) for y in re.findall(r"<path class=\"misses\" d=\"M[\d.]+ ([\d.]+)L", text)]
    assert heights[0] < heights[1] < heights[3] < heights[2]  # down the picture: 40, 0.3, 0.2, 0.1


def test_the_rate_of_a_bias_does_not_squeeze_the_bars_of_large_layers() -> None:
    weights = np.rint(np.random.default_rng(0).normal(0, 3, 10_000))
    text = page(built([layer("bias", np.arange(9), place=1), layer("weight", weights, place=2)]), "model.riqz")
    bars = re.findall(
        r'<td class="number barred rate" data-value="(.*?)"><div><i aria-hidden="true"><b(.*?)></b>', text
    )
    (large, full), (small, pale) = bars
    assert float(small) > 3 * float(large)
    assert full == ' style="width: 50.00%"' and pale == ' class="pale" style="width: 100.00%"'


VERIFIED = {
    "archive": "models/model.riqz", "against": "model.onnx", "deviation": 0.01, "standard_error": 0.005, "worst": 0.04,
    "measured": [{"name": HOSTILE, "mean": 0.01, "worst": 0.04, "samples": 4, "standard_error": 0.005}],
    "top1": [{"name": "logits", "samples": 4, "choices": 4, "kept": 3}],
    "bound": 0.005, "margin": 1.0, "within": False, "holds": False,
    "constraint": {"value": 0.1, "limit": 0.05, "holds": False},
}  # fmt: skip


def test_a_verification_is_a_page_of_the_same_kind() -> None:
    text = verification_page(VERIFIED, [0.0, 0.0, math.nan, 0.04, 0.0])
    tree = Tree(text)
    assert "<title>model.riqz: riq verify</title>" in text and tree.tags.count("script") == 1
    said = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text.replace("&nbsp;", " ")))
    assert "verdict does not hold deviation ABOVE its bound of 0.005, with a margin of 1 standard error" in said
    assert "deviation 0.01 ± 0.005; mean of 4 samples" in said
    assert "relative error 14 %" in said and "top-1 kept 75 % 3 of 4 choices" in said
    assert "constraint does not hold 0.1 ABOVE 0.05" in said
    worst = re.findall(r'<tr><td class="number">(\d+)</td><td class="number">(.*?)</td>', text)
    assert worst == [("3", "0.04"), ("0", "0"), ("1", "0"), ("4", "0")]
    assert text.count(": 3 of the samples") == text.count(": 1 of the samples") == 1  # those of 0 in the first bar


def test_a_verification_of_nothing_or_of_equal_outputs_is_a_page_too() -> None:
    nothing = {"archive": "m.riqz", "against": "-", "bound": None, "margin": 0.0, "within": True, "holds": True}
    text = verification_page(nothing, [])
    assert "No float output was measured." in text and "no bound on the deviation" in text
    equal = nothing | {
        "deviation": 0.0, "standard_error": None, "worst": 0.0,
        "measured": [{"name": "y", "mean": 0.0, "worst": 0.0, "samples": 1, "standard_error": None}],
    }  # fmt: skip
    text = verification_page(equal, [0.0])
    assert '<figure class="trace">' not in text and "The worst samples" in text
    broken = equal | {"deviation": math.inf, "worst": math.inf, "bound": 0.01}
    broken["measured"] = [{"name": "y", "mean": math.inf, "worst": math.inf, "samples": 2, "standard_error": None}]
    text = verification_page(broken, [math.inf, 0.02])
    assert "– times the mean" in text and "nan" not in Tree(text).text
    assert "nan" not in "".join(re.findall(r'(?:cx|cy|x1|y1|x2|y2|d|width|height)="([^"]*)"', text))


# ---- in a browser ----

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium found; apt-get install chromium")
NAMES = ("stem", "conv10", "conv9", "dense", HOSTILE)


def dumped(path: Path, fragment: str = "") -> tuple[Tree, list[str]]:
    """The page as the browser has it after its scripts, and what it said on the console."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=3000", "--enable-logging=stderr",
        "--dump-dom", path.as_uri() + fragment,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return Tree(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def clicked(path: Path, script: str) -> Tree:
    """The page after a script of the test, which its policy would not let run."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text())
    other = path.with_name("clicked.html")
    other.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    tree, said = dumped(other)
    assert said == []
    return tree


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(archive(*NAMES), "model.riqz"))
    return path


@in_browser
def test_the_page_opens_without_a_word_on_the_console(saved: Path) -> None:
    tree, said = dumped(saved)
    assert said == []
    assert [shown for _, shown in tree.rows] == [True] * 5
    assert tree.headers == ["none"] * 4 + ["descending"] + ["none"] * 7
    assert re.search(r"5 of 5 layers, [\d,]+ bytes", tree.text)
    saved.with_name("bad.html").write_text("<script>nothing()</script>")
    assert "nothing is not defined" in dumped(saved.with_name("bad.html"))[1][0]  # errors would have been seen


@in_browser
def test_the_address_sorts_and_filters(saved: Path) -> None:
    tree, said = dumped(saved, "#sort=bytes&order=descending&filter=conv+conv10")
    assert said == []
    assert [name for name, _ in tree.rows][1:] == ["dense", "conv9", "conv10", "stem"]
    assert [name for name, shown in tree.rows if shown] == ["conv10"]
    assert tree.headers == ["none"] * 4 + ["descending"] + ["none"] * 7


@in_browser
def test_clicks_on_a_header_sort_up_and_down(saved: Path) -> None:
    click = "document.querySelector('th[data-key={}] button').click();"
    tree = clicked(saved, click.format("name"))
    assert [name for name, _ in tree.rows][1:] == ["conv9", "conv10", "dense", "stem"]  # numbers as numbers
    assert tree.headers[1] == "ascending"
    tree = clicked(saved, 2 * click.format("name"))
    assert [name for name, _ in tree.rows][:4] == ["stem", "dense", "conv10", "conv9"]
    tree = clicked(saved, click.format("bytes"))  # the other way round than it is at first
    assert [name for name, _ in tree.rows][:4] == ["stem", "conv10", "conv9", "dense"]
    assert tree.headers == ["none"] * 4 + ["ascending"] + ["none"] * 7


@in_browser
def test_typing_filters_and_the_address_keeps_it(saved: Path) -> None:
    script = (
        "const box = document.getElementById('filter'); box.value = 'GEMM';"
        "box.dispatchEvent(new Event('input')); document.querySelector('h1').textContent = location.hash;"
    )
    tree = clicked(saved, script)
    assert [name for name, shown in tree.rows if shown] == ["dense"]
    assert "1 of 5 layers" in tree.text and "#filter=GEMM" in tree.text


@in_browser
@pytest.mark.parametrize(("width", "scrolling"), [(1200, 0), (400, 1)])
def test_nothing_scrolls_sideways_but_the_table_in_its_box(width: int, scrolling: int, tmp_path: Path) -> None:
    """`scrolling` boxes do, of a page in a frame of this width, scroll bar included."""
    script = (
        "setTimeout(() => parent.document.body.append(JSON.stringify(["
        "document.documentElement.scrollWidth - document.documentElement.clientWidth,"
        "[...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length])), 500)"
    )
    names = ("encoder.layers.11.self_attention.query_projection.weight", "dense", "W" * 300)
    for number, made in enumerate((archive(*names), Archive.open(GOLDENS / "v1-scales.riqz"))):
        text = re.sub(r"<meta http-equiv[^>]*>", "", page(made, "m" * 200 + ".riqz"))
        text = text.replace("</body>", f"<script>{script}</script></body>")
        frame = f'<iframe style="width: {width}px; height: 900px" srcdoc="{escape(text, quote=True)}"></iframe>'
        path = tmp_path / f"{number}.html"
        path.write_text(f"<body>{frame}</body>")
        tree, said = dumped(path)
        assert said == []
        assert tree.text.strip() == f"[0,{scrolling}]"


@in_browser
def test_light_and_dark_are_two_pictures(saved: Path) -> None:
    assert BROWSER is not None
    sizes = []
    for scheme in ("1", "0"):
        picture = saved.with_name(f"{scheme}.png")
        subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--blink-settings=preferredColorScheme={scheme}",
             f"--user-data-dir={saved.parent / 'profile'}", "--virtual-time-budget=3000",
             "--window-size=1280,2000", f"--screenshot={picture}", saved.as_uri()],
            capture_output=True, timeout=600, check=True,
        )  # fmt: skip
        sizes.append(picture.read_bytes())
    assert sizes[0] != sizes[1]


# ---- the command ----


def test_the_command_writes_the_page_whole_or_not_at_all(tmp_path: Path) -> None:
    archive("first", "dense").save(tmp_path / "model.riqz")
    done = riq("report", "model.riqz", "--html", "report.html", folder=tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert (done.returncode, done.stdout) == (0, b"")
    assert re.fullmatch(r"report\.html: \d+\.?\d* kB\n", done.stderr.decode())
    assert text == page(Archive.open(tmp_path / "model.riqz"), "model.riqz")

    done = riq("report", "model.riqz", "--html", "report.html", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == b"riq: error: report.html: exists already; use --force to replace it, or name another file\n"
    done = riq("report", "model.riqz", "--html", "model.riqz", "-f", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"model.riqz: is read by this command and never overwritten" in done.stderr
    assert riq("report", "model.riqz", "--html", "-", folder=tmp_path).stdout.decode() == text
    assert riq("report", "model.riqz", "--html", "report.html", "-f", "--json", folder=tmp_path).stdout.startswith(b"{")


def test_a_damaged_table_leaves_no_page(tmp_path: Path) -> None:
    made = archive("first")
    data = made._source
    assert isinstance(data, bytes)
    start = made.manifest.skeleton.bytes
    Archive(
        made.manifest,
        data[:start] + bytes(made.manifest.layers[0].table) + data[start + made.manifest.layers[0].table :],
    ).save(tmp_path / "model.riqz")
    done = riq("report", "model.riqz", "--html", "report.html", folder=tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr
        == b"riq: error: model.riqz: layer 'first': a table holds an impossible code; the archive is damaged\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.riqz"]
