"""The pages of a run and of a comparison, opened in a browser."""

import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
from test_compare_report import NASTY, comparison
from test_generation import QUESTIONS

import bbt
from bbt.compare.costs import cost_tables
from bbt.compare.page import page
from bbt.compare.scores import score_table
from bbt.compare.table import Table
from bbt.compare.work import Failure
from bbt.runs.folder import RunFolder
from bbt.runs.page import confusion, run_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EVIL = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"> & more {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser without a window or a network, with what its console says."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium")
    binary, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    own = f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"
    alone = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
    for argument in (own, "--window-size=1200,1600", *alone):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """text -> the browser with that page; at the end its console must be empty, and nothing fetched from elsewhere."""

    def show(text):
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        browser.get(file.as_uri())
        return browser

    yield show
    assert browser.get_log("browser") == []
    assert browser.title != "taken"
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []


def texts(browser, selector):
    return [one.text for one in browser.find_elements("css selector", selector)]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run on rows whose texts are HTML."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = [{"text": f"{EVIL} {'x' * (5 * i)}", "label": i % 3 % 2} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text("".join(json.dumps({**row, "text": row["text"] + " ."}) + "\n" for row in rows))
    task = {"template": "{prompt} {text} {mask}", "label_words": ["no", "yes"], "label_names": ["<b>no</b>", "yes"]}
    tree = {
        "task": {"name": "films", **task},
        "data": {"source": "files", "train": str(folder / "rows.jsonl"), "test": str(folder / "test.jsonl"), "k": 8},
        "model": {"backend": "bbt.testing:ToyBackend", "name": "toy"},
        "budget": {"queries": 60, "dev_every": 20},
    }
    return bbt.run(bbt.make_config(tree), folder / "runs")


def test_a_run_s_page_shows_choice_table_confusion_and_the_most_wrong_rows(opened, labelled):
    browser = opened(run_page(RunFolder(labelled.folder, hold=False)))
    records = [json.loads(line) for line in (labelled.folder / "outputs.jsonl").read_text().splitlines()]
    names = ["<b>no</b>", "yes"]
    counts = confusion_matrix([r["gold"] for r in records], [r["label"] for r in records], labels=names)
    shown = texts(browser, "table.plain td.own, table.plain td.other")
    assert shown == [str(count) for count in counts.ravel()]
    assert texts(browser, "table.plain tbody th")[:2] == names
    test = dict(zip(texts(browser, ".sortable tbody th"), texts(browser, ".sortable tbody td"), strict=True))
    assert test == {name: f"{100 * metrics['accuracy']:.2f}" for name, metrics in labelled.result["test"].items()}
    wrong = sorted(
        (r for r in records if r["gold"] != r["label"]), key=lambda record: record["probabilities"][record["gold"]]
    )
    assert len(wrong) > 1
    assert texts(browser, ".rows td.text") == [record["text"].strip() for record in wrong[:20]]
    assert f"{len(wrong)} of 60 test rows are wrong" in browser.find_element("tag name", "main").text
    picture = browser.find_element("css selector", "figure svg")
    assert "chosen by dev loss" in picture.text
    assert "manual prompt on dev" in picture.text
    assert picture.size["width"] > 400
    assert browser.find_element("css selector", ".verdict p").text.startswith(("Chosen: ", "The manual prompt stays."))


def test_pages_are_light_or_dark_as_the_reader_s_system_is(opened, labelled):
    browser = opened(run_page(RunFolder(labelled.folder, hold=False)))
    colors = {}
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        style = "return [getComputedStyle(document.body)[arguments[0]], getComputedStyle(document.querySelector("
        colors[scheme] = browser.execute_script(style + "'svg text')).fill]", "backgroundColor")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    sums = {scheme: [sum(map(int, color[4:-1].split(","))) for color in both] for scheme, both in colors.items()}
    assert sums["light"][0] > 600 > 200 > sums["light"][1]  # a light ground and dark words
    assert sums["dark"][0] < 200 < 600 < sums["dark"][1]


@pytest.mark.filterwarnings("ignore:the parts of the data overlap")
def test_what_was_written_stands_beside_its_references(opened, tiny_folder, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    task = {"name": "asked", "template": "{source} {source_pair} {target}", "decoding": {"max_new_tokens": 4}}
    columns = {"source": "story", "source_pair": "asks", "target": "said"}
    tree = {
        "task": task,
        "data": {"source": "files", "k": 2, "train": str(file), "test": str(file), "columns": columns},
        "model": {"name": str(tiny_folder("gpt2")), "options": {"precision": "fp32"}},
        "method": {"name": "manual"},
    }
    outcome = bbt.run(bbt.make_config(tree), tmp_path / "runs")
    browser = opened(run_page(RunFolder(outcome.folder, hold=False)))
    cells = texts(browser, ".rows tbody td")
    records = [json.loads(line) for line in (outcome.folder / "outputs.jsonl").read_text().splitlines()]
    assert len(cells) == 3 * len(records)
    assert cells[1].split("\n") == [text.strip() for text in records[0]["references"]]
    assert [cell.split() for cell in cells[2::3]] == [record["output"].split() for record in records]


def test_a_click_on_a_column_s_name_sorts_a_comparison_s_table(opened):
    shown = comparison()
    rows = (("b", "9.50 ± 1.00", "-"), ("a", "-", "1,000"), ("c", "10.00 ± 0.10", "20"), ("a10", "+7.00 (p = 1)", "3"))
    tables = [Table("four rows", ("method", "score", "cost"), (*rows, ("a9", "-8", "1")))]
    browser = opened(page(EVIL, shown, [*tables, score_table(shown)], [Failure(shown.cells[0], EVIL)], EVIL))
    heads = browser.find_elements("css selector", "table:first-of-type thead th")[:3]

    def order(click):
        heads[click].find_element("tag name", "button").click()
        names = [
            one.text for one in browser.find_element("tag name", "table").find_elements("css selector", "tbody th")
        ]
        return names, [head.get_attribute("aria-sort") for head in heads]

    assert order(1) == (["c", "b", "a10", "a9", "a"], [None, "descending", None])
    assert order(1) == (["a9", "a10", "b", "c", "a"], [None, "ascending", None])
    assert order(2) == (["a", "c", "a10", "a9", "b"], [None, None, "descending"])
    assert order(0) == (["a", "a9", "a10", "b", "c"], ["ascending", None, None])
    heads[0].find_element("tag name", "button").send_keys("\ue007")  # Enter
    assert texts(browser, "table tbody th")[:5] == ["c", "b", "a10", "a9", "a"]
    assert browser.find_element("tag name", "h1").text == " ".join(EVIL.split())
    assert EVIL in browser.find_element("css selector", ".failed").text


def test_a_comparison_s_pictures_and_notes_are_all_on_its_page(opened):
    shown = comparison()
    tables = [score_table(shown), *cost_tables(shown), NASTY]
    browser = opened(page("title", shown, tables, [], "seeds: [0]"))
    assert texts(browser, "caption") == [table.title for table in tables]
    assert len(browser.find_elements("css selector", "figure svg")) == 6
    assert texts(browser, ".notes li") == [note for table in tables for note in table.notes]
    wide = "return document.documentElement.scrollWidth <= window.innerWidth"
    assert browser.execute_script(wide)


def test_confusion_counts_rows_without_an_answer_apart():
    def record(gold, label):
        return {"gold": gold, "label": label, "probabilities": {"a": 0.5, "b": 0.5}}

    found = confusion([record("a", "a"), record("a", None), record("b", "a")])
    assert (found.names, found.rows, found.has_none) == (["a", "b"], [("a", [1, 0, 1]), ("b", [1, 0, 0])], True)
    assert confusion([]) is None
    np.testing.assert_equal(confusion([record("b", "b")]).rows, [("a", [0, 0]), ("b", [0, 1])])
