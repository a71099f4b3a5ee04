"""README.zh.md against README.md: the two may not drift. What the sentences say is for people to compare, not here."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
FENCE = re.compile(r"^```\w*\n.*?^```$", re.MULTILINE | re.DOTALL)
# What scripts write is in the English page alone.
WRITTEN = re.compile(r"<!-- ([\w-]+):begin -->.*?<!-- \1:end -->\n?", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def own(page: Path) -> str:
    """The page without what scripts write into it."""
    return WRITTEN.sub("", page.read_text(encoding="utf-8"))


def prose(page: Path) -> str:
    return FENCE.sub("", own(page))


def headings(text: str) -> list[tuple[int, str]]:
    found = re.findall(r"^(#+) (.+)$", FENCE.sub("", text), re.MULTILINE)
    return [(len(marks), title) for marks, title in found]


def links(page: Path) -> list[str]:
    """All but those to the other language, and places within the page, which are named by its headings."""
    found = LINK.findall(prose(page))
    return sorted(link for link in found if not link.startswith(("#", ENGLISH.name, CHINESE.name)))


def tables(page: Path) -> list[list[int]]:
    """How many cells each row has."""
    found = re.findall(r"(?:^\|.*\n)+", prose(page), re.MULTILINE)
    return [[line.count("|") - 1 for line in table.splitlines()] for table in found]


def test_the_headings_have_the_same_levels() -> None:
    assert [level for level, _ in headings(own(CHINESE))] == [level for level, _ in headings(own(ENGLISH))]


def test_the_examples_are_the_same() -> None:
    assert FENCE.findall(own(CHINESE)) == FENCE.findall(own(ENGLISH))


def test_the_links_and_pictures_are_the_same() -> None:
    assert links(CHINESE) == links(ENGLISH)
    pictures = [re.findall(r"!\[[^]]*\]\(([^)]+)\)", own(page)) for page in (CHINESE, ENGLISH)]
    assert pictures[0] == pictures[1] != []


def test_places_within_the_page_are_those_of_the_same_headings() -> None:
    numbers = []
    for page in (CHINESE, ENGLISH):
        titles = [title.lower().replace(" ", "-") for _, title in headings(own(page))]
        numbers.append([titles.index(link[1:]) for link in LINK.findall(prose(page)) if link.startswith("#")])
    assert numbers[0] == numbers[1] != []


def test_the_names_are_the_same() -> None:
    """Commands, settings, paths: whatever stands as code within a sentence."""
    chinese, english = (set(re.findall(r"`+([^`]+)`+", prose(page))) for page in (CHINESE, ENGLISH))
    assert chinese ^ english == set()


def test_the_tables_have_the_same_shape() -> None:
    assert tables(CHINESE) == tables(ENGLISH)


def test_each_leads_to_the_other_at_its_head() -> None:
    for page, other in ((ENGLISH, CHINESE), (CHINESE, ENGLISH)):
        assert f"]({other.name})" in "\n".join(page.read_text(encoding="utf-8").splitlines()[:5])


def test_what_scripts_write_is_linked_to_where_it_stands() -> None:
    text = ENGLISH.read_text(encoding="utf-8")
    written = [headings(text[: found.start()])[-1][1].lower() for found in WRITTEN.finditer(text)]
    assert len(written) == 3
    linked = {link.partition("#")[2] for link in LINK.findall(prose(CHINESE)) if link.startswith(f"{ENGLISH.name}#")}
    assert linked == set(written)


def test_a_chinese_sentence_is_on_one_line() -> None:
    """A line's end within one would be shown as a space."""
    broken = [
        (above, below)
        for above, below in pairwise(prose(CHINESE).splitlines())
        if above and below and not above.startswith(("|", "#"))
    ]
    assert broken == []
