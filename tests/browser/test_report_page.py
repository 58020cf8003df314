"""The report in a real browser: made from a small demo, and from made-up aggregates of a large one."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from features.report_sums import NEXT, PAST
from jobs.report import figures_of, plotly_js
from jobs.report_facts import ReportFacts
from jobs.report_html import page as html_of
from jobs.report_night import NightFile
from jobs.settings import load_settings

PROJECT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = Path("/usr/bin/chromium")
SHOTS = PROJECT / "out" / "report-test"
MOST_BYTES = 8_000_000
PATIENCE_MS = 300_000
DATE = "2024-06-30"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SMALL = (
    "simulation.users=500", "simulation.days=40", "training.max_epochs=2", "evaluation.n_bootstrap=100",
    "report.people=6",
)  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing: install Debian's package chromium, or run `make report-test` as root.")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def demo_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished demo. INTEREST_REPORT names one that is there already."""
    if "INTEREST_REPORT" in os.environ:
        return Path(os.environ["INTEREST_REPORT"]).resolve()
    root = tmp_path_factory.mktemp("demo") / "out"
    flags = [part for text in SMALL for part in ("--set", text)]
    command = [sys.executable, "-m", "jobs.run", "--demo", "--ranks", "1", "--root", str(root), *flags]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    path = root / "report" / f"dt={DATE}" / "report.html"
    assert f"Open the report in a browser: {path}" in done.stdout
    return path


class Opened:
    """A page, and what it asked for and complained of since it was opened."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280, scheme: Any = "light") -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.documentElement.dataset.ready")

    def draw_all(self) -> list[str]:
        """Scroll to every figure; names of those that hold no mark after a while."""
        empty = []
        for place in self.page.query_selector_all(".plot"):
            place.scroll_into_view_if_needed()
            name = place.get_attribute("data-figure")
            marks = ".trace, .sankey-link, .hm image, .heatmaplayer image"
            try:
                self.page.wait_for_selector(f"#plot-{name} :is({marks})", state="attached")
            except Exception:
                empty.append(str(name))
        return empty


@pytest.fixture(scope="module")
def opened(browser: Browser, demo_report: Path) -> Iterator[Opened]:
    found = Opened(browser, demo_report)
    yield found
    found.page.close()


def test_every_figure_draws_and_has_its_table(opened: Opened) -> None:
    figures = opened.page.query_selector_all(".plot")
    assert len(figures) >= 12
    assert opened.draw_all() == []
    for place in figures:
        rows = opened.page.query_selector_all(f"#figure-{place.get_attribute('data-figure')} tbody tr")
        assert rows, place.get_attribute("data-figure")
        assert place.get_attribute("aria-label")
    SHOTS.mkdir(parents=True, exist_ok=True)
    opened.page.screenshot(path=str(SHOTS / "light.png"), full_page=True)


def test_the_first_screen_answers_the_three_questions(opened: Opened) -> None:
    cards = [card.inner_text() for card in opened.page.query_selector_all(".card")]
    assert "Which interests rise?" in cards[0]
    assert re.search(r"[▲▼].*points|No move", cards[0])
    assert re.search(r"Next category: (Yes|No)", cards[1])
    assert "unknown_action" in cards[2] or "other reasons" in cards[2]
    box = opened.page.query_selector_all(".card")[2].bounding_box()
    assert box is not None
    assert box["y"] < 900


def test_a_user_is_found_and_one_who_is_not_there_is_said(opened: Opened) -> None:
    page = opened.page
    users = [o.get_attribute("value") for o in page.query_selector_all("#users option")]
    assert len(users) == 6 or "INTEREST_REPORT" in os.environ
    page.fill("#user", str(users[-1]))
    page.press("#user", "Enter")
    shown = page.inner_text("#person")
    assert f"{users[-1]}: interests" in shown
    assert page.query_selector_all("#person .timeline li")
    assert "Events that moved the scores most" in shown
    page.fill("#user", "nobody")
    page.press("#user", "Enter")
    assert "No user “nobody” in the sample." in page.inner_text("#person")


def test_a_click_on_a_reason_shows_such_rows(opened: Opened) -> None:
    reason = opened.page.query_selector(".reason[data-reason='bad_time']")
    assert reason is not None
    reason.click()
    assert reason.get_attribute("aria-expanded") == "true"
    assert "bad_time" in opened.page.inner_text("#samples h4")
    assert opened.page.query_selector_all("#samples pre")


def test_the_theme_turns_and_figures_turn_with_it(opened: Opened) -> None:
    page = opened.page
    page.query_selector("#theme").click()  # type: ignore[union-attr]
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.query_selector("#theme").click()  # type: ignore[union-attr]
    assert page.inner_text("#theme") == "Theme: dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.wait_for_function("document.querySelector('#plot-movers .xtick text')?.style.fill.includes('232, 237, 242')")
    page.screenshot(path=str(SHOTS / "dark.png"), full_page=True)


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, demo_report: Path) -> None:
    phone = Opened(browser, demo_report, width=375)
    assert phone.draw_all() == []
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 375
    phone.page.screenshot(path=str(SHOTS / "phone.png"), full_page=True)
    assert phone.complaints == []
    phone.page.close()


def test_nothing_is_complained_of_and_nothing_is_fetched(opened: Opened, demo_report: Path) -> None:
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [demo_report.as_uri()]
    assert demo_report.stat().st_size < MOST_BYTES


def large_facts() -> ReportFacts:
    """Aggregates as 100,000 users with 500 categories would leave them."""
    names, users, end = [f"category {n:03d}" for n in range(500)], 100_000, date.fromisoformat(DATE)
    weights = [1 / (n + 5) for n in range(500)]
    base = [w / sum(weights) for w in weights]
    shares = [
        {"category_id": name, "step": step, "share": b * (1 + 0.1 * move), "share_low": b * 0.9, "share_high": b * 1.2,
         "move": b * 0.1 * move, "low": b * (0.1 * move - 0.05), "high": b * (0.1 * move + 0.05), "users": 900}
        for n, (name, b) in enumerate(zip(names, base, strict=True))
        for step in (PAST, NEXT, 1, 7, 30)
        for move in ((0 if step == PAST else n % 5 - 2),)
    ]  # fmt: skip
    shown = [*names[:10], "all others"]
    flows = [
        {"step": step, "from": a, "to": b, "users": 3000 if a == b else 600}
        for step in (PAST, 7) for a in shown for b in shown
    ]  # fmt: skip
    weekly = [
        {"week": end - timedelta(days=6 + 7 * k), "category_id": name, "share": b, "events": int(b * 1e6)}
        for name, b in zip(names, base, strict=True) for k in range(8)
    ]  # fmt: skip
    interests = [
        {"name": name, "past": 0.1, "next": 0.05, "trend": "fading", "ahead": {"7": 0.1}} for name in names[:13]
    ]
    person = {
        "provenance": "model", "interests": interests, "n_sessions": 400, "moved": None,
        "outlook": ["back within 24 h: 40%"],
        "items": [{"item": f"item {k}", "p": 0.01, "why": ["2024-06-30 10:00 view item 7"] * 3} for k in range(20)],
        "sessions": [{"start": "2024-06-30T10:00", "n": 9, "categories": names[:3], "actions": ["view", "buy"]}] * 30,
    }  # fmt: skip
    counters = {"rows_read": 10_000_000, "rows_refused": 50_000, "rejected_bad_time": 50_000, "events": 9_950_000}
    return ReportFacts(
        date=DATE, night=NightFile(users, "v", DATE, counters, 1_000_000), quality={}, shares=shares, flows=flows,
        route=(PAST, 7, 30), weekly=weekly, hours=[{"hour": h, "count": 1000 + h} for h in range(168)],
        activity=[{"events": n, "users": 200_000 // n} for n in range(1, 5001)],
        samples={"bad_time": ["x" * 400] * 5}, people=[{**person, "user": f"user {k}"} for k in range(60)],
        provenance={"model": users}, sampled_users=users, weeks=9,
    )  # fmt: skip


def test_500_categories_of_100_000_users_stay_small_and_quick(browser: Browser, tmp_path: Path) -> None:
    facts, path = large_facts(), tmp_path / "large.html"
    path.write_text(html_of(facts, figures_of(facts, load_settings()), plotly_js()), encoding="utf-8")
    assert path.stat().st_size < MOST_BYTES
    large = Opened(browser, path)
    print(f"\n{path.stat().st_size:,} bytes; ready {large.page.evaluate('document.documentElement.dataset.ready')} ms "
          "after the page was asked for")  # fmt: skip
    assert large.draw_all() == []
    assert large.complaints == []
    large.page.close()
