"""What each engine can't do: everything that is not named here must be `yes`, and what is named must still be so.

An engine that learns something fails the run too, until its line here goes: the table in the README stays true.
"""

from collections.abc import Mapping

from tests.conformance.outcome import Outcome

UNSUPPORTED, REFUSED, IGNORED, FAILS = Outcome.UNSUPPORTED, Outcome.REFUSED, Outcome.IGNORED, Outcome.FAILS

CANNOT: Mapping[str, Mapping[str, Outcome]] = {
    "llama-server": {},
    "vllm": {},
    "transformers": {},
    "infinity": {},
    "ollama-v1": {},
}


def expected(engine: str, row: str) -> Outcome:
    return CANNOT[engine].get(row, Outcome.YES)
