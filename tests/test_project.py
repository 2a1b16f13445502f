"""The files around the package agree with each other: version, lint commands, citation, the typed user's script."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from user_script import main as user_script

import hbr_fast

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def yaml_of(name: str) -> Any:
    return yaml.safe_load(read(name))


def steps() -> dict[str, list[str]]:
    """Name -> command of every step of scripts/test.sh, tools without the path of their environment."""
    found = re.findall(r'^(?:step|beside) "([^"]+)" (.+)$', read("scripts/test.sh"), flags=re.MULTILINE)
    assert len(found) >= 4
    return {name: [word.removeprefix("$venv/bin/") for word in shlex.split(command)] for name, command in found}


def test_pre_commit_hooks_are_the_lint_of_the_test_command() -> None:
    hooks = [hook for repo in yaml_of(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    lint = {name: command for name, command in steps().items() if command[0] in ("ruff", "mypy")}
    assert len(lint) == 3
    assert {hook["name"]: shlex.split(hook["entry"]) for hook in hooks} == lint
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)


def test_version_has_one_source() -> None:
    project = tomllib.loads(read("pyproject.toml"))
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "hbr_fast/__init__.py"
    assert yaml_of("CITATION.cff")["version"] == hbr_fast.__version__


def test_changelog_begins_with_unreleased_or_this_version() -> None:
    """So that a tag needs one change: the heading of what it releases."""
    first = re.search(r"^## (.+)$", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert first is not None
    heading = re.escape(hbr_fast.__version__) + r" \(\d{4}-\d\d-\d\d\)"
    assert first[1] == "Unreleased" or re.fullmatch(heading, first[1])


def test_citation_has_what_a_reader_needs() -> None:
    about = yaml_of("CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "license", "references"} <= set(about)
    assert about["references"][0]["identifiers"][0]["value"] == "arXiv:2504.07031"


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_issue_templates_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert set(form) == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= set(form)
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "markdown")
        assert field["attributes"]["label"]


def test_user_script_runs(tmp_path: Path) -> None:
    found = user_script(tmp_path)
    assert found["batches"] == 3
    assert (found["drawn"], found["kept"]) == (3 * 24, 12)
    assert found["epochs"] == 1
    assert found["p"] == 1


def test_installation_progress_shows_what_is_done_in_plain_letters(tmp_path: Path) -> None:
    log = tmp_path / "pip.log"
    bars = "     \u2501\u2501\u2501 5/900 MB\r     \u2501 10/900 MB\n"
    log.write_text(
        f"Collecting torch\n  Downloading torch-2.whl (900\u00a0MB)\n{bars}    Successfully uninstalled setuptools-65\n"
    )
    script = (
        f"set -euo pipefail; source {shlex.quote(str(ROOT / 'scripts/setup_env.sh'))}; telling {shlex.quote(str(log))}"
    )
    assert subprocess.check_output(["bash", "-c", script], text=True) == "Downloading torch-2.whl (900MB)\n"
