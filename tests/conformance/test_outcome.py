"""The suite can fail: what is no clean refusal is `no`, and the table in a document is replaced whole."""

from pathlib import Path

import httpx
import pytest

from tests.conformance.checks import CHECKS
from tests.conformance.expected import CANNOT
from tests.conformance.outcome import HttpRefusal, Ignored, Outcome, observe
from tests.conformance.report import BEGIN, END, Column, table, write_between_marks
from tests.conformance.subjects import ENGINES

CLEAN = {"message": "This engine has no chat.", "type": "CapabilityNotSupported", "param": None, "code": "x"}


def refusing(status: int, error: object, **headers: str) -> Outcome:
    response = httpx.Response(status, json={"error": error}, headers={"x-request-id": "1", **headers})

    def check() -> None:
        raise HttpRefusal(response)

    return observe(check).outcome


@pytest.mark.parametrize(
    ("status", "error", "outcome"),
    [
        (422, CLEAN, Outcome.UNSUPPORTED),
        (400, CLEAN | {"type": "invalid_request_error"}, Outcome.REFUSED),
        (502, CLEAN | {"type": "RemoteEndpointError"}, Outcome.FAILS),
        (404, CLEAN | {"type": "invalid_request_error"}, Outcome.NO),  # of a model that there is
        (400, CLEAN, Outcome.NO),  # the type and the status disagree
        (422, CLEAN | {"code": "404"}, Outcome.NO),
        (422, CLEAN | {"message": ""}, Outcome.NO),
        (422, {"message": "no param and no code", "type": "CapabilityNotSupported"}, Outcome.NO),
        (422, "text", Outcome.NO),
    ],
)
def test_error_answers(status: int, error: object, outcome: Outcome) -> None:
    assert refusing(status, error) is outcome


def test_an_error_without_a_request_id_is_no() -> None:
    assert refusing(422, CLEAN, **{"x-request-id": ""}) is Outcome.NO


def test_a_wrong_answer_is_no_and_a_missing_feature_is_ignored() -> None:
    def wrong() -> None:
        raise AssertionError("content is 'x'")

    def missing() -> None:
        raise Ignored("one choice")

    assert observe(wrong).outcome is Outcome.NO
    assert observe(missing).outcome is Outcome.IGNORED


def test_expectations_are_of_rows_and_engines_that_exist() -> None:
    assert CANNOT.keys() == ENGINES.keys()
    assert {row for rows in CANNOT.values() for row in rows} <= CHECKS.keys()


def test_the_table_goes_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    text = table(["chat"], [Column("A", "1.0"), Column("B", skipped="no compiler")])
    write_between_marks(document, text)
    written = document.read_text()
    assert written.startswith(f"before\n{BEGIN}\n|  | A 1.0 | B |\n")
    assert "| chat | **no** | skipped |" in written
    assert "B was skipped: no compiler" in written
    assert "old" not in written
    assert written.endswith(f"\n{END}\nafter\n")


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("nothing here")
    with pytest.raises(ValueError, match="conformance:begin"):
        write_between_marks(document, "table")
    assert document.read_text() == "nothing here"
