"""HTML and SVG elements, made without writing HTML."""

from xml.etree import ElementTree

from page.figures import Run

Element = ElementTree.Element


def h(tag: str, *children, **attributes) -> Element:
    """An HTML or SVG element. Text is escaped when it is written. `class_` is class, data_x is data-x."""
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    element = Element(tag, {names[k]: str(v) for k, v in attributes.items() if v is not None})
    for child in children:
        if child is None:
            continue
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + str(child)
        else:
            element.text = (element.text or "") + str(child)
    return element


def html(*elements: Element) -> str:
    return "".join(ElementTree.tostring(element, encoding="unicode", method="html") for element in elements)


def run_class(index: int) -> str:
    return f"r{index % 6}"


def run_name(index: int, run: Run, tag: str = "b") -> Element:
    epoch = () if run.epoch is None else (h("wbr"), f"@{run.epoch}")
    return h(tag, h("bdi", run.short, *epoch), class_=run_class(index), title=run.label)


def class_name(name: str) -> Element:
    """A long name is cut in its middle if there is no room, because names often differ at their ends."""
    if len(name) <= 10:
        return h("bdi", name, title=name)
    return h("bdi", h("span", name[:-6]), h("span", name[-6:]), title=name, class_="cut")


def table(heads: list, rows: list[list], **attributes) -> Element:
    """A table; the first cell of each row is its head."""
    top = h("tr", *(h("th", head, scope="col") for head in heads))
    body = (h("tr", h("th", row[0], scope="row"), *(h("td", cell) for cell in row[1:])) for row in rows)
    return h("table", h("thead", top), h("tbody", *body), **attributes)
