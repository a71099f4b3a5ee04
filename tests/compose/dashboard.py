"""What the dashboard in configs/grafana asks Prometheus, as Prometheus gets it."""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[2] / "configs" / "grafana" / "dashboards" / "illm.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
VARIABLES = {"$__rate_interval": "1m", "$model": ".*", "$backend": ".*"}  # as Grafana fills them in for "all"


def filled_in(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


EXPRESSIONS = tuple(
    dict.fromkeys(filled_in(target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"])
)
