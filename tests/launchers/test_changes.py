"""What a reload makes of two lists of engines."""

import json

from launchers.changes import Changes, changes
from launchers.spec import EngineSpec, parse
from launchers.start import fingerprint
from tests.launchers import support


def engine(name: str, *words: str, **members: object) -> EngineSpec:
    launcher = {"listen": None, "api_key": None, "bind": "127.0.0.1", "orphans": "kill", "linger": 1.0, "watch": False,
                "budget": None, "auto_install": False, "file": None}  # fmt: skip
    document = {"launcher": launcher, "engines": [support.spec(name, *words, **members)]}
    return parse(json.dumps(document).encode()).engines[0]


def test_only_what_changed_is_touched() -> None:
    old = [engine("same"), engine("gone"), engine("told-otherwise"), engine("kept-longer")]
    new = [engine("same"), engine("told-otherwise", "--children", "1"), engine("kept-longer", ttl=60.0), engine("new")]

    found = changes(old, new, fingerprint)

    assert found == Changes(
        start=("new",), stop=("gone",), restart=("told-otherwise",), update=("kept-longer",), keep=("same",)
    )
    assert str(found) == "start new; stop gone; restart told-otherwise; update kept-longer; keep same"


def test_what_the_process_is_told_decides_over_a_restart() -> None:
    plain = engine("one")

    assert fingerprint(engine("one", pin=True, ttl=5.0, memory=10, min_residency=3.0)) == fingerprint(plain)
    assert fingerprint(engine("one", env={"A": "b"})) != fingerprint(plain)
    assert fingerprint(engine("one", port=4000)) != fingerprint(plain)
    assert fingerprint(engine("one", gpus=["1"])) != fingerprint(plain)
    assert fingerprint(engine("one", public="other")) != fingerprint(plain)


def test_nothing_to_do_says_so() -> None:
    assert str(changes([], [], fingerprint)) == "nothing"
