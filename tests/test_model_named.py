"""Reports name their model, without folders, and compare no other model with its goals."""

from __future__ import annotations

import json
from dataclasses import replace

import nbformat
import pytest
from tests.tiny_model import write_tiny_model

from batchgauge.core.model_facts import REFERENCE, ModelFacts, counted
from batchgauge.errors import UserError
from batchgauge.reporting import Report, Score
from batchgauge.reporting.export import export
from batchgauge.reporting.index import write_index
from batchgauge.reporting.readme import results_block
from batchgauge.suite import Subject

GOAL = Score("inference_batch_8", "Inference, S(8)", 3.0, 4.0, 3.5, 4.5, "×", of_model=True)
METHOD = Score("statistics_100_items", "Statistics", 1000.0, 4.0, unit="µs", better="lower")


@pytest.fixture
def model(tmp_path):
    """A tiny model with a name and a licence, in a folder that is nobody's business."""
    (tmp_path / "private").mkdir()
    keys = {"general.name": "Tiny Thing", "general.license": "mit"}
    return write_tiny_model(tmp_path / "private" / "t.gguf", quantisation="Q8_0", keys=keys)


def reported(out, **parameters):
    """A finished report's facts."""
    report = Report.begin("tour", title="T", question="Q?", out_dir=out, parameters=parameters)
    report.show()
    for score in (GOAL, METHOD):
        report.score(score)
    report.answer("It is so.")
    return json.loads(report.finish().read_text("utf-8"))


def test_facts_name_the_model(tmp_path, model):
    """Architecture, parameters, types, weights mode, context, licence, file without folders."""
    facts = reported(tmp_path, model=str(model), engine="numpy:file")
    for part in ("Tiny Thing", "llama", "Q8_0", "context 128", "licence mit", "weights file"):
        assert part in facts["model"]
    assert facts["model_facts"]["file"] == facts["parameters"]["model"] == "t.gguf"
    assert "private" not in json.dumps(facts)
    plain = write_tiny_model(tmp_path / "plain.gguf")
    facts = reported(tmp_path, model=str(plain))
    assert facts["model"].startswith("plain: llama")
    assert "licence not stated" in facts["model"]


def test_pages_index_and_readme_name_it(tmp_path, model):
    """Every page that leads to figures says what they are of."""
    facts = reported(tmp_path, model=str(model))
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(f"model = {str(model)!r}")]
    )
    notebook.cells[0].metadata["tags"] = ["injected-parameters"]
    pages = export(notebook, facts, tmp_path / "reports", {})
    pages += [write_index(tmp_path, ["tour"]), tmp_path / "reports" / "index.md"]
    for page in pages:
        text = page.read_text("utf-8")
        assert page.suffix == ".ipynb" or "Tiny Thing" in text, page
        assert "private" not in text, page
    assert "Tiny Thing" in results_block(tmp_path, ["tour"])


def test_another_model_has_no_goals_of_ours(tmp_path, model):
    """Its figures stay; what was aimed at for ours on our engine is not held against it."""
    other = [s["verdict"] for s in reported(tmp_path, model=str(model))["scores"]]
    assert other == ["not comparable", "met"]
    ours = ModelFacts.read()
    if ours.digest == REFERENCE:  # not where BATCHGAUGE_MODEL names another
        assert [s["verdict"] for s in reported(tmp_path, model="")["scores"]] == ["met", "met"]
    for engine in ("llama-cpp", "openai:http://127.0.0.1:1/v1", "own:make"):
        verdicts = [s["verdict"] for s in reported(tmp_path, model="", engine=engine)["scores"]]
        assert verdicts == ["not comparable", "met"]
    assert "not comparable" in replace(GOAL, comparable=False).sentence()


def test_stored_runs_are_of_a_model_and_not_of_a_path(tmp_path, model):
    """Another model is another workload; the same one under another name is not."""
    again = write_tiny_model(
        tmp_path / "again.gguf", quantisation="Q8_0",
        keys={"general.name": "Tiny Thing", "general.license": "mit"},
    )  # fmt: skip
    digests = [Subject(model=str(path)).workload_digest for path in (model, again)]
    assert digests[0] == digests[1] != Subject().workload_digest


def test_a_wrong_path_is_one_sentence(tmp_path):
    """Said when the report begins; a server's model is the server's to name."""
    with pytest.raises(UserError, match=r"nothing\.gguf"):
        reported(tmp_path, model=str(tmp_path / "nothing.gguf"))
    facts = reported(tmp_path, model="", engine="openai:http://127.0.0.1:1/v1")
    assert facts["model"] == "the engine's own"


def test_counts_read_as_people_say_them():
    """Three digits."""
    assert [counted(n) for n in (950, 134_515_008, 1_235_814_432)] == [
        "950", "135 million", "1.24 billion",
    ]  # fmt: skip
