"""Passwords and keys are shown nowhere."""

from __future__ import annotations

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from batchgauge.errors import UserError
from batchgauge.redaction import redacted
from batchgauge.reporting.export import write_notebook
from batchgauge.reporting.report import Report


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("openai:http://ann:s3cret@host:80/v1#m", "openai:http://***@host:80/v1#m"),
        ("openai:http://ann:p@s/s#x@host/v1", "openai:http://***@host/v1"),
        ("https://s3cret@host/v1", "https://***@host/v1"),
        ("https://:s3cret@host/v1", "https://***@host/v1"),
        ("http://host/v1?api_key=s3cret&n=1", "http://host/v1?api_key=***&n=1"),
        ("http://host/v1?a=1&amp;key=s3cret", "http://host/v1?a=1&amp;key=***"),
        ("openai:http://host/v1#api-key=s3cret", "openai:http://host/v1#api-key=***"),
        ("Incorrect API key: sk-abcdef0123456789abcd.", "Incorrect API key: sk-***."),
        ("header Authorization: Bearer s3cret-0123", "header Authorization: Bearer ***"),
        ("Basic YW5uOnMzY3JldA==", "Basic ***"),
    ],
)
def test_secrets_are_replaced(text, shown):
    """Users' passwords, keys in addresses and keys that servers echo become `***`."""
    assert redacted(text) == shown
    assert redacted({"a": [text, (text,)], "b": 1}) == {"a": [shown, (shown,)], "b": 1}


@pytest.mark.parametrize(
    "text",
    [
        "openai:http://127.0.0.1:8080/v1#org/model@q4",
        "openai:http://[::1]:8080/v1#model@q4",
        "Basic measures of a bearer of news; a@b, c://d",
        "http://host/v1?max_new=3#model",
        "hf_tokenizer_of_a_long_name, sk-learn",
        "",
    ],
)
def test_what_is_no_secret_stays(text):
    """Addresses, model names and words that only look alike are left alone."""
    assert redacted(text) == text


def test_the_key_of_the_environment_is_a_secret(monkeypatch):
    """OPENAI_API_KEY is replaced wherever it stands, whatever it looks like."""
    monkeypatch.setenv("OPENAI_API_KEY", "plainwords")
    assert redacted("you sent plainwords!") == "you sent ***!"
    assert str(UserError("no plainwords at http://a:b@c")) == "no *** at http://***@c"


def test_an_executed_notebook_and_its_facts_keep_no_password(tmp_path):
    """What papermill injected, what cells printed and the report's facts are redacted."""
    spec = "openai:http://ann:s3cret@host/v1"
    cell = new_code_cell(f'engine = "{spec}"')
    cell.outputs = [
        new_output("display_data", {"text/plain": spec}, metadata={"batchgauge": {"text": spec}})
    ]
    path = write_notebook(new_notebook(cells=[cell]), tmp_path / "n.ipynb", {})
    assert "s3cret" not in path.read_text(encoding="utf-8")
    assert (
        nbformat.read(path, as_version=4).cells[0].source == 'engine = "openai:http://***@host/v1"'
    )
    report = Report.begin(
        "secret", title="t", question="q", out_dir=tmp_path, parameters={"engine": spec}
    )
    report.finding(f"{spec} was slow.")
    report.answer(f"{spec} answered.")
    text = report.finish().read_text(encoding="utf-8")
    assert "s3cret" not in text
    assert json.loads(text)["parameters"] == {"engine": "openai:http://***@host/v1"}


def test_a_home_folder_is_shortened_and_pictures_are_left_alone(tmp_path, monkeypatch):
    """The letters of a short home folder may stand in a picture's base64."""
    monkeypatch.setenv("HOME", "/abc")
    picture = "iVBORw0K/abc7AAAAAA/abc/"
    outputs = [
        new_output("display_data", {"image/png": picture, "text/plain": "a picture"}),
        new_output("stream", text="read /abc/model.gguf, /abc"),
    ]
    cell = new_code_cell("show()", outputs=outputs)
    written = write_notebook(new_notebook(cells=[cell]), tmp_path / "a.ipynb", {})
    shown = nbformat.read(written, as_version=4).cells[0].outputs
    assert shown[0].data["image/png"] == picture
    assert shown[1].text == "read ~/model.gguf, ~"
