"""compose.yaml and what belongs to it, against one another and against the gateway. Nothing is started here."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.metrics import BackendGauge, Metrics
from proxy.settings import Settings, load_settings
from tests.compose.dashboard import DASHBOARD, EXPRESSIONS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ENGINES = ("vllm", "sglang", "tgi", "llamacpp", "transformers", "embeddings")
OLLAMA_PORT = 11434  # its own default: its command doesn't say it
# `${NAME:-default}` and `NAME:` without a value, which is handed on as it is; `$$` is the container's own.
READ = dict(re.findall(r"(?<!\$)\$\{([A-Z_]+):-([^}]*)\}", TEXT))
READ |= dict.fromkeys(re.findall(r"^ +([A-Z_]+):$", TEXT, re.MULTILINE), "")


def settings(**environ: str) -> Settings:
    return load_settings(CONFIGS / "compose.yaml", environ)


def port_of(service: dict[str, Any]) -> int:
    words = service.get("command", "")
    found = re.search(r"--port (\d+)", words if isinstance(words, str) else shlex.join(words))
    return int(found[1]) if found else OLLAMA_PORT


def lines(file: str) -> list[str]:
    return (ROOT / file).read_text(encoding="utf-8").replace("\\\n", "").splitlines()


# --- the stack -----------------------------------------------------------------------------------------------------


def test_without_a_profile_there_is_ollama_with_a_model() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {"gateway", "ollama", "pull"}
    assert {name: SERVICES[name]["profiles"] for name in ENGINES} == {name: [name] for name in ENGINES}
    assert {SERVICES[name]["profiles"][0] for name in ("prometheus", "grafana")} == {"observability"}


def test_every_variable_is_in_the_example_with_its_default() -> None:
    told = dict(re.findall(r"^#([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert told.pop("COMPOSE_PROFILES") == ""  # Compose's own
    assert told == READ


def test_the_example_is_all_comments() -> None:
    """So that a copy changes nothing: an empty HF_TOKEN isn't the same as none."""
    assert [line for line in lines(".env.example") if line and not line.startswith("#")] == []


def test_every_engine_is_a_backend_by_its_name_and_port() -> None:
    backends = settings().backends
    assert set(backends) == {"ollama", *ENGINES}
    for name, backend in backends.items():
        assert backend.root == f"http://{name}:{port_of(SERVICES[name])}"
        assert backend.kind == ("tei" if name == "embeddings" else name)


def test_what_the_gateway_is_told_are_settings() -> None:
    told = SERVICES["gateway"]["environment"]
    assert told["ILLM_CONFIG"] == "configs/compose.yaml"
    names = {name: "given" for name, value in told.items() if value is None}
    assert settings(**names).model == "given"
    assert len(names) == 3


def test_nothing_is_open_to_the_network_unless_somebody_says_so() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"gateway", "prometheus", "grafana"}
    (gateway,) = published.pop("gateway")
    assert gateway.startswith("${ILLM_HOST:-127.0.0.1}:")
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_watched_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == ("on-failure:3" if name == "pull" else "unless-stopped")
    assert "max-size" in service["logging"]["options"]
    if name == "pull":
        assert service["healthcheck"] == {"disable": True}  # it has no /livez
    elif name != "gateway":  # whose image has its own
        assert service["healthcheck"]["test"][0] == "CMD"
    waits = service.get("depends_on", {})
    assert {each["condition"] for each in waits.values()} <= {"service_healthy"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_a_version_and_can_be_another(name: str) -> None:
    found = re.fullmatch(r"\$\{[A-Z]+_IMAGE:-([^:}]+):([^}]+)\}", SERVICES[name]["image"])
    assert found
    assert re.search(r"\d", found[2]) or (found[2] == "local" and "build" in SERVICES[name])


@pytest.mark.parametrize("name", ENGINES)
def test_engines_have_the_gpu_and_keep_their_weights(name: str) -> None:
    service = SERVICES[name]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert service["volumes"]
    assert "HF_TOKEN" in service["environment"]
    assert service["environment"]["CUDA_VISIBLE_DEVICES"].endswith("_GPUS:-0}")
    assert service["healthcheck"]["start_period"] == "30m"
    assert str(port_of(service)) in str(service["healthcheck"]["test"])


def test_every_volume_is_declared_and_used_and_every_file_is_there() -> None:
    sources = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    assert {source for source in sources if not source.startswith("./")} == set(COMPOSE["volumes"])
    assert [source for source in sources if source.startswith("./") and not (ROOT / source).exists()] == []


def test_streams_may_end_before_the_gateway_is_killed() -> None:
    assert int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s")) > settings().server.drain_timeout


# --- the image -----------------------------------------------------------------------------------------------------


def test_the_image_has_no_build_tools_no_root_and_a_health_check() -> None:
    text = lines("Dockerfile")
    last = text[max(number for number, line in enumerate(text) if line.startswith("FROM ")) :]
    told = {line.split(" ", 1)[0]: line for line in last if line and not line.startswith(("#", " "))}
    assert told["USER"] == "USER 10001:10001"
    assert told["ENTRYPOINT"] == 'ENTRYPOINT ["illm"]'  # no shell between Docker's signals and illm
    assert told["CMD"] == 'CMD ["serve"]'
    assert "/livez" in told["HEALTHCHECK"]
    assert "pip" not in "".join(last).replace("gets no pip", "")
    assert "apt" not in "".join(last)


def test_the_image_gets_only_what_it_is_made_of() -> None:
    copied = [
        word
        for line in lines("Dockerfile")
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    let_through = [line.removeprefix("!") for line in lines(".dockerignore") if line.startswith("!")]
    assert lines(".dockerignore")[1] == "*"
    assert sorted(copied) == sorted(let_through)
    assert [name for name in copied if not (ROOT / name).exists()] == []


# --- what is watched -----------------------------------------------------------------------------------------------


def exposed() -> dict[str, set[str]]:
    """Metric -> its labels, as the gateway tells them once everything has happened."""
    metrics = Metrics(version="1", started=0.0)
    series = metrics.series("chat", "m", "b")
    series.first_byte(0.1)
    series.finished(200, 0.1)
    series.tokens(1, 1)
    metrics.error("model_not_found")
    text = metrics.render([BackendGauge("b", "vllm", "ready", 1, "l", "ready")]).decode()
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_dashboard_asks_for_what_there_is(expression: str) -> None:
    known = exposed()
    named = re.findall(r"\b((?:illm|process)_\w+)(?:\{([^}]*)\})?", expression)
    assert named
    for metric, selector in named:
        assert metric in known
        labels = set(re.findall(r"(\w+)=~?\"", selector)) - {"job"}
        assert labels <= known[metric]
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert set(grouped.split(", ")) <= known[named[0][0]]


def test_the_dashboard_shows_every_metric() -> None:
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed()}
    shown = " ".join(EXPRESSIONS)
    assert {name for name in families if name not in shown} == set()


def test_the_dashboard_has_its_source_and_its_place() -> None:
    provisioning = CONFIGS / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    used = re.findall(r'"datasource": (\{[^}]*\})', (CONFIGS / "grafana" / "dashboards" / "illm.json").read_text())
    assert {yaml.safe_load(each)["uid"] for each in used} == {source["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "illm.yaml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounted["./configs/grafana/dashboards"] == provider["options"]["path"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/illm.json"


def test_the_panels_stand_beside_one_another() -> None:
    cells: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert cells.setdefault((x, y), panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_looks_at_the_gateway_with_its_key() -> None:
    (job,) = yaml.safe_load((CONFIGS / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["gateway:8000"]}]
    service = SERVICES["prometheus"]
    assert f">{job['authorization']['credentials_file']}\n" in service["command"][0]
    assert "ILLM_API_KEYS" in service["environment"]
    assert SERVICES["gateway"]["ports"][0].endswith(":8000")
    assert 'job="illm"' in " ".join(EXPRESSIONS)
    assert job["job_name"] == "illm"
