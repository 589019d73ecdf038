"""The orders pipeline's own functions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.orders import Order, newest, order_row, parse_order, product_category, revenue_row, sale

GOOD: dict[str, Any] = {
    "order_id": "O-1",
    "ordered_at": "2026-03-01T09:30:00Z",
    "updated_at": "2026-03-01T09:31:07Z",
    "customer": "Zoë",
    "product": "P-017",
    "quantity": 3,
    "unit_price": "12.50",
}

BAD: dict[str, tuple[Any, str]] = {
    "a list": ([1, 2], "not a JSON object"),
    "a text": ("order", "not a JSON object"),
    "nothing": (None, "not a JSON object"),
    "no id": ({**GOOD, "order_id": ""}, "order_id is not a text, or empty"),
    "a number as id": ({**GOOD, "order_id": 1}, "order_id is not a text, or empty"),
    "half a character": ({**GOOD, "customer": "\ud83d"}, "customer holds half a character"),
    "no price": ({key: value for key, value in GOOD.items() if key != "unit_price"}, "unit_price is missing"),
    "a price in floating point": ({**GOOD, "unit_price": 12.5}, "unit_price is not a text, or empty"),
    "a price in tenths": ({**GOOD, "unit_price": "12.5"}, "unit_price is not like 12.50"),
    "a negative price": ({**GOOD, "unit_price": "-12.50"}, "unit_price is not like 12.50"),
    "a price in other digits": ({**GOOD, "unit_price": "\u0661\u0662.\u0665\u0660"}, "unit_price is not like 12.50"),
    "a price that goes on": ({**GOOD, "unit_price": "12.50\n"}, "unit_price is not like 12.50"),
    "no quantity": ({**GOOD, "quantity": None}, "quantity is not a whole number from 1 to 10,000"),
    "quantity zero": ({**GOOD, "quantity": 0}, "quantity is not a whole number from 1 to 10,000"),
    "quantity true": ({**GOOD, "quantity": True}, "quantity is not a whole number from 1 to 10,000"),
    "quantity as text": ({**GOOD, "quantity": "3"}, "quantity is not a whole number from 1 to 10,000"),
    "too many": ({**GOOD, "quantity": 10_001}, "quantity is not a whole number from 1 to 10,000"),
    "half of one": ({**GOOD, "quantity": 2.5}, "quantity is not a whole number from 1 to 10,000"),
    "a date alone": ({**GOOD, "updated_at": "2026-03-01"}, "updated_at is not like 2026-03-01T09:30:00Z"),
    "a week date": ({**GOOD, "ordered_at": "2026-W10-1T09:30:00Z"}, "ordered_at is not like 2026-03-01T09:30:00Z"),
    "another zone": ({**GOOD, "ordered_at": "2026-03-01T09:30:00+0100"}, "ordered_at is not like 2026-03-01T09:30:00Z"),
    "February 30": (
        {**GOOD, "ordered_at": "2026-02-30T09:30:00Z"},
        "ordered_at is a date or time that does not exist",
    ),
}

ORDER: Order = ("2026-03-01T09:31:07Z", "2026-03-01T09:30:00Z", "Zoë", "P-017", 3, 1250)


def test_an_order_is_parsed() -> None:
    """Every field arrives, the price in cents; a field that nobody asked for is no error."""
    assert parse_order({**GOOD, "note": "gift"}) == ("O-1", ORDER)


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_order_says_why(name: str) -> None:
    """The reason in the dead letter names the field and what it should be like."""
    value, reason = BAD[name]
    with pytest.raises(ValueError) as told:  # noqa: PT011 - the message is compared as a whole
        parse_order(value)
    assert str(told.value) == reason


@given(st.permutations(range(8)), st.data())
def test_the_newest_does_not_depend_on_the_order_of_reading(positions: list[int], data: st.DataObject) -> None:
    """Of several versions the one updated last counts, wherever it stands; ties go to the greater one."""
    prices = data.draw(st.lists(st.integers(1, 3), min_size=8, max_size=8))
    versions: list[Order] = [
        (f"2026-03-01T09:31:0{number // 2}Z", *ORDER[1:5], price) for number, price in enumerate(prices)
    ]
    expected = ("2026-03-01T09:31:03Z", *ORDER[1:5], max(prices[6:]))
    assert newest(("O-1", (versions[position] for position in positions)), {}) == ("O-1", expected, "unknown")


def test_money_stays_exact() -> None:
    """No amount passes through floating point."""
    order: Order = (*ORDER[:4], 10_000, 999_999_999)
    assert order_row("O-1", order, "books")["amount"] == "99999999900.00"
    assert sale("O-1", order, "books") == (("2026-03-01", "books"), 9_999_999_990_000)
    assert revenue_row(("2026-03-01", "books"), 5) == {"day": "2026-03-01", "category": "books", "revenue": "0.05"}


def test_a_row_has_the_order_and_what_was_joined() -> None:
    """What `clean/` holds."""
    known = dict([product_category({"product": "P-017", "name": "a spade", "category": "garden"})])
    assert order_row(*newest(("O-1", [ORDER]), known)) == {**GOOD, "category": "garden", "amount": "37.50"}


def test_a_product_that_is_not_listed_has_an_unknown_category() -> None:
    """The order counts; the list is behind."""
    assert newest(("O-1", [ORDER]), {}) == ("O-1", ORDER, "unknown")
