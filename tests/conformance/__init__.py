"""The gateway in front of real engines (and a stand-in of TGI), asked by the official clients: engine by capability.

`python -m tests.conformance` (scripts/conformance) runs it. subjects.py starts an engine and a gateway before it,
checks.py lists the rows (the checks themselves are in answers, refusals and leaving), outcome.py has the words of a
cell, expected.py what each engine is known to be unable to do, report.py the table. A new engine is one entry in
subjects.ENGINES and its line in expected.CANNOT.
"""
