import xml.etree.ElementTree as ET

import pytest
from markupsafe import Markup

from hushprompt.reporting.markup import join, num, tag


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "\"quoted\" & 'more'", "a\x00b\x1f", "\ud800", "]]>", "שלום ‮"]
)
def test_no_name_breaks_out_of_an_element_or_an_attribute(name):
    element = ET.fromstring(tag("p", name, title=name))
    assert element.text == element.get("title")
    assert list(element) == []
    assert len(element.text) == len(name)


def test_markup_stays_and_other_text_is_escaped():
    assert join(["<", Markup("<b>"), ">"]) == "&lt;<b>&gt;"
    assert tag("td") == "<td></td>"
    assert tag("path", d="M0 0", class_=None, stroke_width=1 / 3) == '<path d="M0 0" stroke-width="0.33"/>'


def test_numbers_are_short():
    assert [num(value) for value in (10.0, 0.004, -0.001, 12.346)] == ["10", "0", "0", "12.35"]
