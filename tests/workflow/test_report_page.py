"""The report of the demo in a real browser: it opens without an error, shows all, and asks for nothing from outside."""

import csv
import json
import shutil

import pytest
import yaml

from chromium import with_page
from pipeline import ROOT, must_run

BYTES = 10_000_000  # of the demo's page


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The demo as it is shipped, with small images of the sky."""
    assert shutil.which("wsclean"), "this test needs WSClean: apt-get install --no-install-recommends wsclean"
    folder = tmp_path_factory.mktemp("demo")
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    must_run(folder, config | {"image": {"enabled": True, "size_pixels": 256, "n_iterations": 300}})
    return folder / "results"


@pytest.fixture
def visit(results, tmp_path):
    """Open the report in a window of a given width, do something, and return what that gives."""

    def go(do, width=1180, dark=False):
        async def use(page):
            await page.window(width, dark=dark)
            await page.open((results / "report.html").as_uri())
            return await do(page)

        return with_page(tmp_path / "profile", use)

    (tmp_path / "profile").mkdir()
    return go


def test_opens_whole_and_quickly_without_errors(results, visit):
    async def do(page):
        state = await page.run(
            """({
                images: [...document.images].map(image => [image.naturalWidth, image.alt]),
                dead: [...document.querySelectorAll("a[href]")].map(link => link.getAttribute("href"))
                    .filter(href => !href.startsWith("#") || !document.getElementById(href.slice(1))),
                links: document.links.length,
                load_ms: performance.getEntriesByType("navigation")[0].loadEventEnd,
                title: document.title,
            })"""
        )
        return state, page.events

    state, events = visit(do)
    size = (results / "report.html").stat().st_size
    print(f"report of the demo: {size / 1e6:.2f} MB, {len(state['images'])} images, {state['load_ms']:.0f} ms to load")
    assert "lofar, meerkat" in state["title"]
    assert len(state["images"]) == 17  # of each observation 3 of flags, 4 of solutions, 1 of the sky; who ran when
    assert all(width > 0 and alt for width, alt in state["images"])
    assert state["links"] >= 7
    assert state["dead"] == []
    assert size < BYTES
    errors = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Network.loadingFailed")
    assert [event for event in events if event["method"] in errors] == []
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked[0].startswith("file:")
    assert all(url.startswith("data:") for url in asked[1:])


def test_fits_a_phone_also_when_everything_is_unfolded(visit):
    async def do(page):
        await page.run("document.querySelectorAll('details').forEach(one => one.open = true)")
        return await page.run("[document.documentElement.scrollWidth, innerWidth, document.body.scrollWidth]")

    assert visit(do, width=380) == [380, 380, 380]


def test_paths_are_whole_on_a_phone(visit):
    """The table of what went in and came out was once wider than the window, and cut paths off."""

    async def do(page):
        return await page.run(
            "[...document.querySelectorAll('.scroll:has(> .facts)')].map(o => o.scrollWidth - o.clientWidth)"
        )

    assert visit(do, width=380) == [0, 0]


@pytest.mark.parametrize("dark", [False, True])
def test_page_and_pictures_follow_the_colour_scheme(visit, dark):
    async def do(page):
        return await page.run(
            """(() => {
                const image = document.images[0], canvas = document.createElement("canvas");
                canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
                const pen = canvas.getContext("2d");
                pen.drawImage(image, 0, 0);
                const colour = getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number);
                return [colour, [...pen.getImageData(2, 2, 1, 1).data].slice(0, 3)];
            })()"""
        )

    page, picture = visit(do, dark=dark)
    assert page == picture  # the picture's ground is the page's
    assert max(page) < 60 if dark else min(page) > 200


def test_keyboard_reaches_links_and_unfolds_details(visit):
    async def do(page):
        reached = []
        for _ in range(200):
            await page.press("Tab", 9)
            reached.append(await page.run("document.activeElement.tagName"))
            if reached[-1] == "SUMMARY":
                break
        before = await page.run("document.activeElement.parentElement.open")
        await page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r")
        after = await page.run("document.activeElement.parentElement.open")
        return reached, before, after, await page.run("getComputedStyle(document.activeElement).outlineStyle")

    reached, before, after, outline = visit(do)
    assert reached[0] == "A"
    assert reached[-1] == "SUMMARY"
    assert (before, after) == (False, True)
    assert outline == "solid"


def test_what_the_page_shows_is_there_as_files(results):
    for obs in ("lofar", "meerkat"):
        with open(results / obs / "flags.tsv", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        counts = {row["stage"]: int(row["n_total"]) for row in rows if row["axis"] == "all"}
        assert counts["raw"] > counts["preprocess"] == counts["apply"]
        steps = [row for row in rows if row["stage"] == "preprocess.aoflagger2" and row["axis"] == "station"]
        assert len(steps) == 16
        images = json.loads((results / obs / "image/image.json").read_text())["images"]
        assert images["after-clean.fits"]["dynamic_range"] > 2 * images["before-clean.fits"]["dynamic_range"]
        assert not list((results / obs).glob("*/*.ms"))  # chunks are gone once they have been imaged
