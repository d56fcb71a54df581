"""What the documentation says exists: links, anchors, targets of make, error messages, configurations that validate."""

import re
from pathlib import Path

import pytest
import yaml

from chunkcal.config import load_schema, validate

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("config/*.md")])
SCHEMA = load_schema(ROOT / "workflow/schemas/config.schema.yaml")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text):
    """Name the anchors of headings as code hosts and myst do."""
    titles = re.findall(r"^#+ (.*)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_links_and_anchors_resolve(page):
    text = without_code(page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{page.name}: {link}"


@each_page
def test_targets_of_make_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), flags=re.MULTILINE):
        assert target in targets, f"{page.name}: make {target}"


@each_page
def test_configurations_are_valid(page):
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL):
        config = yaml.safe_load(block)
        if not isinstance(config, dict) or not set(config) <= set(SCHEMA["properties"]):
            continue  # a part of one
        if config.get("calibrate") and "sky_model" not in config["calibrate"]:
            config["calibrate"]["sky_model"] = "{ms_dir}/{obs}.skymodel"
        validate(config, SCHEMA)


def test_messages_are_those_of_the_program():
    text = (ROOT / "docs/troubleshooting.md").read_text()
    sources = [*ROOT.glob("src/**/*.py"), *ROOT.glob("workflow/rules/*.smk")]
    # As a person reads them: without the breaks between literals, and without what stands between.
    source = "".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in sources)
    messages = re.findall(r"\*\*`(.*?)`\*\*", text)
    assert len(messages) > 20
    assert [message for message in messages if message not in source and message != "LockException"] == []


def test_every_page_is_in_the_contents():
    contents = (ROOT / "docs/index.md").read_text()
    listed = set(re.findall(r"^[a-z-]+$", contents, flags=re.MULTILINE))
    assert listed == {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
