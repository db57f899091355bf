"""`evals.report`: its numbers, its files, and its page in a browser."""

import html
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from case_files import lines
from PIL import Image
from run_files import write_run

from mgm_jax import cli
from mgm_jax.evals import BENCHMARKS, get
from mgm_jax.evals.files import read_records
from mgm_jax.evals.report import write_report
from mgm_jax.evals.report.bootstrap import clusters, differences, group_interval, intervals
from mgm_jax.evals.report.finished import read

XSS = (
    "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
)
# In the second run of textvqa, questions 0 and 1 are wrong and 14 is right.
CHANGES = {"textvqa": {0: "nothing", 1: "no idea", 14: "sign 14", 15: XSS}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(ours, other): evaluations of every benchmark; texts of the other one are hostile."""
    root = tmp_path_factory.mktemp("runs")
    ours = write_run(root / "a", root / "cases", BENCHMARKS, model="MGM <b>2B</b>")
    return ours, write_run(root / "b", root / "cases", BENCHMARKS, model=XSS, changes=CHANGES)


@pytest.fixture
def ours(runs, tmp_path):
    """A copy of the first run, to write to."""
    return Path(shutil.copytree(runs[0], tmp_path / "ours"))


# --- numbers ---


def test_every_verdict_finds_its_question(runs):
    """Also MME's, MM-Vet's and those of pictures with several questions: 13 of 20 are right."""
    for name, part in read(runs[0]).parts.items():
        best = max(v["score"] for v in part.verdicts)
        found = [row.verdict["score"] == best for row in part.rows]
        assert found == [True] * 13 + [False] * 7, name


def test_verdicts_go_by_prompt_where_an_id_stands_twice(ours):
    file = ours / "mme" / "verdicts.json"
    verdicts = json.loads(file.read_text())
    verdicts[0], verdicts[1] = verdicts[1], verdicts[0]  # of one picture
    file.write_text(json.dumps(verdicts))
    rows = read(ours).parts["mme"].rows
    for row in rows[:2]:
        assert row.verdict["asked"] == row.item["prompt"]


def test_intervals_are_those_of_the_binomial_distribution():
    verdicts = [{"score": float(i % 4 != 0)} for i in range(400)]  # 75 %, deviation 2.165 points
    low, high = intervals(get("gqa").summary, verdicts, 4000)["accuracy"]
    assert low == pytest.approx(75 - 1.96 * 2.165, abs=0.4)
    assert high == pytest.approx(75 + 1.96 * 2.165, abs=0.4)
    assert (low, high) == intervals(get("gqa").summary, verdicts, 4000)["accuracy"]
    assert group_interval(verdicts, 4000) == pytest.approx((low, high), abs=0.3)


def test_clusters_are_drawn_as_one():
    """Two equal verdicts a cluster are one fact: the interval is that of half as many."""
    alone = [{"score": float(i % 4 != 0)} for i in range(200)]
    twice = [v | {"cluster": i} for i, v in enumerate(alone) for _ in range(2)]
    assert len(clusters(twice)) == 200 and len(clusters(alone)) == 200
    summary = get("gqa").summary
    narrow = intervals(summary, [v for v in alone for _ in range(2)])["accuracy"]
    assert intervals(summary, twice)["accuracy"] == intervals(summary, alone)["accuracy"]
    wide = intervals(summary, twice)["accuracy"]
    assert (wide[1] - wide[0]) / (narrow[1] - narrow[0]) == pytest.approx(2**0.5, abs=0.15)


def test_differences_are_paired():
    """Both are right on the same 300 of 400, but for 8 that only the first one gets."""
    second = [{"score": float(i % 4 != 0)} for i in range(400)]
    first = [v | {"score": 1.0} if i % 50 == 0 else v for i, v in enumerate(second)]
    found = differences(get("gqa").summary, first, second, 4000)["accuracy"]
    assert found["difference"] == 1.0  # 0, 100, 200, 300 were wrong
    assert found["low"] == pytest.approx(0.25, abs=0.26) and 1.75 <= found["high"] <= 2.25
    same = differences(get("gqa").summary, second, second)["accuracy"]
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_the_report_of_every_benchmark(runs, ours):
    found = write_report(ours, runs[1], paper="MGM-2B", draws=50)
    results = json.loads((ours / "results.json").read_text())["benchmarks"]
    assert list(found["benchmarks"]) == list(results) == list(BENCHMARKS)
    for name, scores in results.items():
        for metric, (low, high) in scores["intervals"].items():
            assert low <= scores["summary"][metric] <= high
        changed = name == "textvqa"
        assert (scores["against"]["gained"], scores["against"]["lost"]) == (2 * changed, changed)
        assert scores["against"]["paired"] == 20
    difference = results["textvqa"]["against"]["summary"]["accuracy"]
    assert (difference["other"], difference["difference"]) == (60.0, 5.0)
    table = (ours / "table.md").read_text()
    assert re.search(
        r"\| TextVQA [^|]*\| accuracy \| 65\.0 \(\S+ to \S+\) \| 56\.2 \| 60\.0 \|", table
    )
    assert "| MME | cognition | 225.0 (" in table and "| 312.0 |" in table
    assert len({line.count(" | ") for line in table.splitlines()}) == 1
    before = {p: p.read_bytes() for p in ours.rglob("*") if p.is_file()}
    write_report(ours, runs[1], paper="MGM-2B", draws=50)
    assert {p: p.read_bytes() for p in ours.rglob("*") if p.is_file()} == before
    write_report(ours, draws=50)  # alone again: nothing of the other one stays
    text = (ours / "report.html").read_text() + (ours / "results.json").read_text()
    assert "against" not in text.replace("against the other", "").replace("against each", "")


def test_categories_and_skills(ours):
    from mgm_jax.evals.report.numbers import count

    parts = read(ours).parts
    skills = count(parts["mmvet"], None, 50).groups["category"]
    assert [(g.name, g.count) for g in skills] == [("math", 7), ("ocr", 14), ("rec", 6)]
    assert skills[0].value == pytest.approx(100 * 4 / 7)
    assert set(count(parts["mathvista"], None, 50).groups) >= {"question_type", "skills"}
    assert set(count(parts["mmbench"], None, 50).groups) == {"l2-category", "category"}
    assert count(parts["textvqa"], None, 50).groups == {}


def test_runs_of_other_questions_meet_where_they_can(runs, ours):
    """The other run has the last 15 of the 20 questions, in another order."""
    other = Path(shutil.copytree(runs[1], ours.parent / "other"))
    items = other / "textvqa" / "items.jsonl"
    lines(items, read_records(items)[5:][::-1])
    verdicts = other / "textvqa" / "verdicts.json"
    verdicts.write_text(json.dumps(json.loads(verdicts.read_text())[5:]))
    results = json.loads((other / "results.json").read_text())
    del results["benchmarks"]["gqa"]
    (other / "results.json").write_text(json.dumps(results))
    found = write_report(ours, other, draws=50)["benchmarks"]
    against = json.loads((ours / "results.json").read_text())["benchmarks"]["textvqa"]["against"]
    assert (against["paired"], against["gained"], against["lost"]) == (15, 0, 1)
    assert "difference" not in found["gqa"]["accuracy"]
    assert found["textvqa"]["accuracy"]["difference"] == pytest.approx(-100 / 15)


def test_what_is_not_scored_or_not_asked(ours):
    """A benchmark without a judge, a picture that is gone, a question with an error."""
    (ours / "mmvet" / "verdicts.json").unlink()
    scores = ours / "mmvet" / "scores.json"
    scores.write_text(json.dumps({"benchmark": "mmvet", "summary": {}, "notes": ["no judge"]}))
    file = ours / "gqa" / "items.jsonl"
    items = read_records(file)
    items[19] |= {"error": "picture x.jpg is missing", "text": "", "images": ["/none/x.jpg"]}
    lines(file, items)
    found = write_report(ours, draws=50)
    assert found["benchmarks"]["mmvet"] == {}
    page = (ours / "report.html").read_text()
    assert "not scored" in page and "<b>MM-Vet</b>: no judge" in page
    assert "20 questions, 1 could not be asked" in page
    rows = (ours / "report" / f"rows_{list(BENCHMARKS).index('gqa')}.js").read_text()
    last = json.loads(rows[rows.index("[") : rows.rindex("]") + 1])[-1]
    assert last["error"] == "picture x.jpg is missing" and last["pictures"] == [None]
    write_report(ours, draws=50, thumbnail=0)
    rows = (ours / "report" / "rows_0.js").read_text()
    assert '"pictures":[null]' in rows and ".webp" not in rows


def test_errors_say_what_is_wrong(runs, ours, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json: this file does not exist; `mgm-j"):
        write_report(tmp_path / "none")
    with pytest.raises(ValueError, match="unknown published model 'MGM-3B', known: MGM-2B, "):
        write_report(ours, paper="MGM-3B")
    with pytest.raises(ValueError, match="found 0 draws"):
        write_report(ours, draws=0)
    file = ours / "textvqa" / "verdicts.json"
    verdicts = json.loads(file.read_text())
    file.write_text(json.dumps([*verdicts, verdicts[0]]))
    with pytest.raises(ValueError, match=f"{file}: 2 verdicts about '0', but 1 questions in"):
        write_report(ours)
    file.write_text("{}")
    with pytest.raises(ValueError, match=f"{file}: found no list of JSON objects"):
        write_report(ours)
    results = json.loads((runs[1] / "results.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    results["benchmarks"] = {"pope": results["benchmarks"]["pope"]}
    (other / "pope" / "scores.json").write_text('{"benchmark": "gqa"}')
    (other / "results.json").write_text(json.dumps(results))
    file.write_text(json.dumps(verdicts))
    with pytest.raises(ValueError, match="this is gqa, expected pope as in"):
        write_report(ours, other)


def test_the_command_and_its_page(runs, ours, monkeypatch, capsys):
    """The commands of docs/report.md."""
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    commands = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1].strip().splitlines()
    shutil.copytree(runs[1], ours.parent / "step_400")
    monkeypatch.chdir(ours.parent)
    for command in commands:
        cli.main([part.replace("out", "ours") for part in shlex.split(command)[1:]])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(Path("report.json").read_text()) == found and found["against"] == "step_400"
    with pytest.raises(SystemExit, match="error: none/results.json: this file does not exist"):
        cli.main(["eval", "report", "none"])


# --- in a browser ---


# Waits for what an action changes, then hands the outcome over in an element of its own.
HARNESS = """<script>
const $ = (s) => document.querySelector(s), $$ = (s) => [...document.querySelectorAll(s)];
const rest = () => new Promise((done) => setTimeout(done, 200));
const texts = (s) => $$(s).map((e) => e.textContent);
addEventListener("load", async () => {
  await rest();
  let found;
  try { found = await (async () => { SCRIPT })(); } catch (error) { found = String(error); }
  const pre = document.createElement("pre");
  pre.id = "outcome";
  pre.textContent = JSON.stringify(found);
  document.body.append(pre);
});
</script>"""


@pytest.fixture(scope="module")
def chromium(browser_path, tmp_path_factory):
    """(folder of a report, script) -> what the script, run in its page, returns."""
    options = [browser_path, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += [f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]
    options += ["--window-size=1300,1500", "--virtual-time-budget=20000"]

    def run(folder, script, shot=None):
        file = folder / "test.html"
        file.write_text((folder / "report.html").read_text() + HARNESS.replace("SCRIPT", script))
        command = [*options, f"--screenshot={shot}" if shot else "--dump-dom", file.as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        found = re.search(r'<pre id="outcome">(.*?)</pre>', done.stdout.decode(), re.DOTALL)
        return found and json.loads(html.unescape(found[1]))

    return run


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    """A report of both runs."""
    copy = Path(shutil.copytree(runs[0], tmp_path_factory.mktemp("report") / "run"))
    write_report(copy, runs[1], draws=20)
    return copy


def test_predictions_are_filtered_and_opened(chromium, folder):
    found = chromium(
        folder,
        """
      const out = {title: document.title, start: texts("#found"), rows: $$(".one").length};
      const choose = async (name, value) => {
        const field = $("#filters")[name];
        field.value = value;
        field.dispatchEvent(new Event(name === "q" ? "input" : "change"));
        await rest();
        return [$("#found").textContent, $$(".one").length, location.hash];
      };
      out.wrong = await choose("verdict", "wrong");
      out.search = await choose("q", "SIGN 17");
      $$(".one")[0].click();
      await rest();
      out.open = [$("#one").open, texts("#one dd"), $("#one img").naturalWidth];
      $("#one .close").click();
      await rest();
      out.closed = [$("#one").open, location.hash];
      $("#filters [type=reset]").click();
      await rest();
      out.cleared = $("#found").textContent;
      out.mmvet = await choose("part", "3");
      out.categories = texts("#filters [name=group] option");
      out.ocr = await choose("group", "category:ocr");
      out.every = await choose("part", "all");
      $("#pager [value='1']").click();
      await rest();
      out.page = [$("#pager span").textContent, $$(".one").length];
      return out;
    """,
    )
    assert found["title"] == "Evaluation of MGM <b>2B</b>"
    assert found["start"] == ["20 of 20"] and found["rows"] == 20
    assert found["wrong"][:2] == ["7 of 20", 7] and found["wrong"][2] == "#verdict=wrong"
    assert found["search"][:2] == ["1 of 20", 1]
    is_open, shown, width = found["open"]
    assert is_open and width == 32 and shown[0].startswith("What is on sign 17?\n")
    assert "nothing" in shown and "Sign 17" in shown
    assert found["closed"] == [False, "#verdict=wrong&q=SIGN+17"] and found["cleared"] == "20 of 20"
    assert found["mmvet"][0] == "20 of 20"
    assert found["categories"] == ["all", "math (7)", "ocr (14)", "rec (6)"]
    assert found["ocr"][:2] == ["14 of 20", 14]
    assert found["every"][:2] == ["300 of 300", 50]
    assert found["page"] == ["page 2 of 6", 50]


def test_two_checkpoints_are_compared(chromium, folder):
    """By the links of the table, and no text of a model becomes markup."""
    found = chromium(
        folder,
        """
      const out = {};
      for (const what of ["gained", "lost"]) {
        $$("#results a").find((a) => a.textContent.includes(what)).click();
        await rest();
        out[what] = texts(".one small").filter((t) => t.includes(", "));
      }
      location.hash = "#part=0&change=other+answer";
      await rest();
      out.other = $("#found").textContent;
      location.hash = "#part=0&open=0/15";
      await rest();
      out.open = texts("#one .both dd");
      $("#one .next").click();
      await rest();
      out.next = $("#one h3 small").textContent;
      const paper = $("#paper"), cells = () => texts("[data-paper]").slice(0, 4);
      paper.value = "MGM-2B";
      paper.dispatchEvent(new Event("change"));
      out.paper = cells();
      out.ticks = $$(".tick.chosen").length;
      out.bars = texts("#categories .name").length;
      out.markup = $$("#list img[src=x], #one img[src=x], header img, section script").length;
      out.title = document.title;
      return out;
    """,
    )
    assert found["gained"] == [f"TextVQA val, with OCR tokens, {i}" for i in (0, 1)]
    assert found["lost"] == ["TextVQA val, with OCR tokens, 14"]
    assert found["other"] == "4 of 20"
    assert found["open"][0] == "nothing" and found["open"][2] == XSS
    assert found["next"] == "16"
    assert found["paper"][0] == "56.2+8.8, above" and found["paper"][2].endswith(", below")
    assert found["ticks"] == 7 and found["bars"] > 30
    assert found["markup"] == 0 and found["title"] == "Evaluation of MGM <b>2B</b>"


def test_it_looks_like_a_page(chromium, folder, tmp_path):
    chromium(folder, "", shot=tmp_path / "shot.png")
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB"))
    assert pixels.shape == (1500, 1300, 3)
    colours = {tuple(c) for c in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
    assert len(colours) > 100 and tuple(bytes.fromhex("4f6fd8")) in colours  # of the dots


def test_ten_thousand_predictions(chromium, tmp_path):
    out = tmp_path / "run" / "gqa"
    out.mkdir(parents=True)
    rows = [
        {"index": i, "question_id": str(i), "prompt": f"What is {i}?", "images": [], "text": "x"}
        for i in range(10_000)
    ]
    lines(out / "items.jsonl", rows)
    verdicts = [
        {
            "question_id": str(i),
            "score": i % 2,
            "parsed": "x",
            "answer": "x",
            "category": str(i % 3),
        }
        for i in range(10_000)
    ]
    (out / "verdicts.json").write_text(json.dumps(verdicts))
    results = {"model": "m", "benchmarks": {"gqa": {"benchmark": "gqa", "notes": []}}}
    (out.parent / "results.json").write_text(json.dumps(results))
    found = write_report(out.parent, draws=20)["benchmarks"]["gqa"]["accuracy"]
    assert found["value"] == 50.0 and found["interval"][1] - found["interval"][0] < 4
    assert len((out.parent / "report.html").read_bytes()) < 60_000  # they lie beside it
    shown = """
      const out = [$("#found").textContent, $$(".one").length, $("#pager span").textContent];
      location.hash = "#part=0&verdict=right&group=category:2&q=What+is+9";
      await rest();
      return [...out, $("#found").textContent, texts(".one p")[0]];
    """
    found = chromium(out.parent, shown)
    assert found[:3] == ["10,000 of 10,000", 50, "page 1 of 200"]
    matching = [i for i in range(10_000) if i % 6 == 5 and str(i).startswith("9")]
    assert found[3:] == [f"{len(matching)} of 10,000", f"What is {matching[0]}?"]
