"""Report pages, parsed by a parser that forgives nothing."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "hr", "input"}
OUTSIDE = ("src", "href", "srcset", "action", "poster")


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: "list[Element | str]" = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its words, with single spaces between them."""
        parts = (child if isinstance(child, str) else child.text for child in self.children)
        return " ".join("".join(parts).split())

    def all(self, tag: str, **attributes: str) -> "list[Element]":
        """The elements of that tag in it, in order; `class_`: a class that they have."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        found = list[Element]()
        for child in self.children:
            if isinstance(child, Element):
                has = all(value in child.attributes.get(name, "").split() for name, value in wanted.items())
                found += [child] * (child.tag == tag and has)
                found += child.all(tag, **attributes)
        return found

    def one(self, tag: str, **attributes: str) -> "Element":
        (found,) = self.all(tag, **attributes)
        return found


class _Strict(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.top = Element("", {})
        self.open = [self.top]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        assert len(self.open) > 1 or not data.strip(), data
        self.open[-1].children.append(data)


def parse(text: str) -> Element:
    """The page as a tree, once it has been seen that it is whole and needs nothing but itself."""
    assert text.startswith("<!DOCTYPE html>")
    parser = _Strict()
    parser.feed(text)
    parser.close()
    assert parser.open == [parser.top]
    (page,) = [child for child in parser.top.children if isinstance(child, Element)]
    assert [child.tag for child in page.children if isinstance(child, Element)] == ["head", "body"]
    ids = [element.attributes["id"] for element in everything(page) if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in everything(page):
        assert element.tag not in ("script", "iframe", "object", "embed", "base", "form"), element.tag
        assert not [name for name in element.attributes if name.startswith("on")]
        for name in set(OUTSIDE) & set(element.attributes):
            address = element.attributes[name]
            assert address.startswith(("data:", "#")) or is_below(address), address
    (style,) = page.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    return page


def everything(page: Element) -> list[Element]:
    inside = [child for child in page.children if isinstance(child, Element)]
    return [*inside, *(element for child in inside for element in everything(child))]


def is_below(address: str) -> bool:
    """Whether a link leads to a file beside the page or below it."""
    return ":" not in address and not address.startswith("/") and ".." not in address.split("/")


def read(file: Path) -> Element:
    """The page in a file; its links lead to files that are there."""
    from urllib.parse import unquote

    page = parse(file.read_text(encoding="utf-8"))
    for link in page.all("a"):
        if not link.attributes["href"].startswith("#"):
            assert (file.parent / unquote(link.attributes["href"])).is_file(), link.attributes["href"]
    return page


def section(page: Element, title: str) -> Element:
    """The section below a heading."""
    (found,) = [one for tag in ("section", "details") for one in page.all(tag) if one.one("h2").text == title]
    return found


def cells(table: Element) -> list[list[str]]:
    """The rows below the head, without headings; of a number all its digits."""
    rows = [row for body in table.all("tbody") for row in body.all("tr") if row.attributes.get("class") != "heading"]
    return [[_cell(cell) for cell in row.children if isinstance(cell, Element)] for row in rows]


def _cell(cell: Element) -> str:
    numbers = cell.all("data")
    return numbers[0].attributes["value"] if numbers else cell.text
