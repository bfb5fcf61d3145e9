"""A report replaces reports, and nothing else."""

import pytest

from star_jax.errors import ConfigError
from star_jax.report.places import CURVE, PAGE, check_places

OWN = '<!DOCTYPE html>\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="star_jax">\n'
FORMER = "<!DOCTYPE html>\n<body>\n<main>\n<h1>Which labels are worth buying?</h1>\n"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "files",
    [{}, {PAGE: OWN}, {PAGE: FORMER}, {PAGE: OWN, CURVE: "any"}, {CURVE: PNG + b"IHDR pHYs"}],
    ids=["nothing", "a page", "a former page", "both", "what a killed report left"],
)
def test_what_a_report_has_written_is_replaced(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    check_places(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(files)


@pytest.mark.parametrize(
    ("name", "content"),
    [(PAGE, b"<html>mine"), (PAGE, b""), (CURVE, b"a note"), (CURVE, PNG + b"tEXtSoftware\0Matplotlib")],
)
def test_what_somebody_else_has_written_is_kept(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name} is there and no report of star_jax, and would be lost; move it"):
        check_places(tmp_path)
    assert (tmp_path / name).read_bytes() == content


def test_a_folder_of_that_name_is_no_report(tmp_path):
    (tmp_path / PAGE).mkdir()
    with pytest.raises(ConfigError, match="is there and no report of star_jax"):
        check_places(tmp_path)
