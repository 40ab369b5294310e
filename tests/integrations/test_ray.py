"""Corpora with Ray: the actor here, a cluster of one machine where there is time.

SIGHTRAIL_CORPUS=2000 python -m pytest -m long tests/integrations/test_ray.py -k corpus -s
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="the ray extra is not installed")
pytest.importorskip("pyarrow", reason="the ray extra is not installed")

import pyarrow.parquet

from serve_helpers import asked, drawn_request
from sightrail.guardrails import RiskDetector
from sightrail.guardrails.embedded import embedded_folder
from sightrail.guardrails.errors import ConfigurationError
from sightrail.guardrails.screening.settings import SETTINGS_FILE, ScreeningSettings
from sightrail.integrations.ray import CorpusSettings, screen_corpus, statuses
from sightrail.integrations.ray.corpus import ScreeningActor, _write
from sightrail.integrations.server import ServerSettings
from sightrail.testbed.source import draw_scenes

PICTURES = int(os.environ.get("SIGHTRAIL_CORPUS", "60"))
TESTBED = CorpusSettings(encoder="testbed", batch=4)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, (scene, _) in enumerate(draw_scenes("objects_1", 2, "test", 3)):
        scene.image.save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_the_actor_says_what_the_detector_says(corpus: Path) -> None:
    paths = [*sorted(map(str, corpus.iterdir())), str(corpus / "gone.png")]
    rows = ScreeningActor(TESTBED)({"path": paths})
    verdicts = RiskDetector.from_pretrained("testbed").screen([Path(path) for path in paths])
    assert rows["path"] == paths
    assert rows["status"] == [verdict.status for verdict in verdicts]
    assert rows["status"].count("not_inspected") == 2
    assert rows["score"] == [verdict.score for verdict in verdicts]
    assert json.loads(rows["verdict"][0])["status"] == rows["status"][0]
    addresses = [Path(path).as_uri() for path in paths]
    assert ScreeningActor(TESTBED)({"path": addresses})["status"] == rows["status"]


def test_a_finished_part_is_not_done_again(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdicts.parquet"
    out.mkdir()
    _write(ScreeningActor(TESTBED)({"path": sorted(map(str, corpus.iterdir()))}), out)
    (out / ".half.begun").write_bytes(b"?")
    assert screen_corpus([corpus], out, TESTBED) == 0
    assert statuses(out).total() == 5
    assert pyarrow.parquet.read_table(out).num_rows == 5
    (out / "part-x.parquet").write_bytes(b"?")
    with pytest.raises(ConfigurationError, match="another folder"):
        screen_corpus([corpus], out, TESTBED)
    with pytest.raises(ConfigurationError, match="cannot be listed"):
        screen_corpus(["nothing://x/y"], tmp_path / "other.parquet", TESTBED)


@pytest.fixture
def cluster() -> Iterator[Any]:
    import ray

    ray.init(
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
    )
    yield ray
    ray.shutdown()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_corpus_on_a_cluster_survives_a_killed_actor(cluster: Any, tmp_path: Path) -> None:
    folder, out = tmp_path / "corpus", tmp_path / "verdicts.parquet"
    folder.mkdir()
    for number, (scene, _) in enumerate(draw_scenes("objects_1", PICTURES // 2, "test", 3)):
        scene.image.save(folder / f"{number:05}.png")
    killed: dict[int, int] = {}

    def tick(done: int, total: int) -> None:
        if not killed and done >= total // 2:
            killed[_kill_an_actor(cluster)] = done

    quick = ScreeningSettings.from_file(embedded_folder("clip") / SETTINGS_FILE)
    settings = tmp_path / SETTINGS_FILE  # one look at each picture: thousands take a minute
    settings.write_text(quick.model_copy(update={"score": "whole_cosine"}).model_dump_json())
    how = CorpusSettings(
        encoder="testbed", screening=settings, actors=2, batch=max(5, PICTURES // 60)
    )
    since = time.monotonic()
    assert screen_corpus([folder], out, how, tick=tick) == PICTURES
    told = {"pictures": PICTURES, "seconds": time.monotonic() - since, "killed": killed}
    assert killed
    assert max(killed.values()) < PICTURES
    table = pyarrow.parquet.read_table(out).to_pydict()
    assert sorted(table["path"]) == [str(path) for path in sorted(folder.iterdir())]
    here = ScreeningActor(how)({"path": sorted(table["path"])})
    assert dict(zip(table["path"], table["status"], strict=True)) == dict(
        zip(here["path"], here["status"], strict=True)
    )
    assert dict(zip(table["path"], table["score"], strict=True)) == pytest.approx(
        dict(zip(here["path"], here["score"], strict=True)), abs=1e-5
    )
    print(json.dumps({**told, "statuses": dict(statuses(out))}), flush=True)


def _kill_an_actor(ray: Any) -> int:
    """End the process of one screening actor, as a machine that goes down would."""
    import signal

    import psutil

    for process in psutil.Process().children(recursive=True):
        if "ScreeningActor" in "".join(process.cmdline()) or "MapWorker" in process.name():
            process.send_signal(signal.SIGKILL)
            return int(process.pid)
    raise AssertionError("no actor is at work")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_replicas_share_their_memory(cluster: Any) -> None:
    from ray import serve

    from sightrail.integrations.ray import serve_application

    key = "a-key-of-the-cluster"
    settings = ServerSettings(model="testbed", stack="screen", encoder="testbed", api_keys=(key,))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serve.start(http_options={"port": port})
    replicas = serve_application(settings, num_replicas=2, ray_actor_options={"num_cpus": 0.5})
    serve.run(replicas)
    url, question = drawn_request("benign", 0)
    body = {"model": "testbed", "messages": asked(question, url), "max_tokens": 8}
    address = f"http://127.0.0.1:{port}/v1/chat/completions"
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=120) as client:
        assert httpx.post(address, json=body, timeout=120).status_code == 401
        replies = [client.post(address, json=body).json() for _ in range(6)]
        assert len({reply["choices"][0]["message"]["content"] for reply in replies}) == 1
        assert replies[0]["sightrail"]["verdicts"][0]["status"] == "clean"
        streamed = client.post(address, json={**body, "stream": True})
        assert streamed.text.rstrip().endswith("data: [DONE]")
    memories = [
        actor
        for actor in cluster.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith("sightrail-verdicts-")
    ]
    (named,) = memories
    memory = cluster.get_actor(named["name"], namespace=named["namespace"])
    assert cluster.get(memory.count.remote()) == 1
    serve.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray Serve declares its settings as pydantic 1 did
def test_nobody_listens_on_a_cluster_for_everybody_unasked() -> None:
    from sightrail.integrations.ray import serve_application

    with pytest.raises(ConfigurationError, match="api_keys"):
        serve_application(ServerSettings(model="testbed", stack="screen", encoder="testbed"))


@pytest.mark.filterwarnings("ignore")  # as above
def test_the_memory_forgets_what_was_not_asked_for_longest() -> None:
    from sightrail.integrations.ray.replicas import VerdictMemory

    memory = VerdictMemory(2)
    memory.remember({b"a": "1", b"b": "2"})
    assert memory.recall([b"a", b"c"]) == ["1", None]
    memory.remember({b"c": "3"})
    assert memory.recall([b"a", b"b", b"c"]) == ["1", None, "3"]
    assert memory.count() == 2
