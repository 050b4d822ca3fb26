"""`docs/settings.md` is made from the settings themselves. Refresh: `make docs`."""

from pathlib import Path

from app.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
HEAD = """# Settings

Environment variables, read once at the start. One that does not exist, or has a value that does not fit, ends the start
with an error that names it. `pose info` shows the values in force. Made from `app/settings.py` by `make docs`.

| variable | default | what |
|---|---|---|
"""


def describe() -> str:
    rows = [
        f"| `POSE_{name.upper()}` | {f'`{field.default}`' if field.default not in (None, ()) else ''} "
        f"| {(field.description or '').replace('|', chr(92) + '|')} |"
        for name, field in Settings.model_fields.items()
    ]
    return HEAD + "\n".join(rows) + "\n"


def test_the_page_lists_the_settings_as_they_are() -> None:
    assert PAGE.read_text() == describe(), "run: make docs"


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


if __name__ == "__main__":
    PAGE.write_text(describe())
