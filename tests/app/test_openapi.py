"""The API's description is a file, so that no change to it goes unseen. Refresh: `make docs`."""

import json
from pathlib import Path

from app.main import create_app
from app.settings import Settings

SNAPSHOT = Path(__file__).parents[2] / "docs" / "openapi.json"


def describe() -> str:
    description = create_app(Settings()).openapi()
    description["info"]["version"] = "snapshot"
    return json.dumps(description, indent=2) + "\n"


def test_the_description_is_the_one_on_file() -> None:
    assert SNAPSHOT.read_text() == describe(), "if this change is meant, run: make docs"


def test_every_error_has_the_one_shape() -> None:
    for path, operations in json.loads(describe())["paths"].items():
        shape = "ProtocolError" if path.startswith("/v2") else "ErrorResponse"  # the protocol prescribes another
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": f"#/components/schemas/{shape}"}


if __name__ == "__main__":
    SNAPSHOT.write_text(describe())
