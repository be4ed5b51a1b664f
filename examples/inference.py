"""An Open Inference Protocol client against Turnout: two customers in one request, each answered by its own version.

pip install 'tritonclient[http]'
python examples/inference.py http://127.0.0.1:8000 churn user-123 user-124

It sends zeros as the features of each entity, in binary, and prints which version answered whom, and why.
"""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import triton_to_np_dtype

WHO, WHY = "turnout.version", "turnout.reason"


def main() -> None:
    """Ask for the model's inputs, send them, and show the answers."""
    arguments = parse()
    entities: list[str] = arguments.entities
    with triton.InferenceServerClient(urlsplit(arguments.url).netloc) as client:
        metadata = client.get_model_metadata(arguments.model)
        inputs = [
            tensor(one["name"], one["datatype"], [len(entities), *one["shape"][1:]])
            for one in metadata["inputs"]
        ]
        about = triton.InferInput("entity_id", [len(entities)], "BYTES")
        about.set_data_from_numpy(np.array(entities, np.object_))
        names = [one["name"] for one in metadata["outputs"]]
        outputs = [triton.InferRequestedOutput(name) for name in [*names, WHO, WHY]]
        found = client.infer(arguments.model, [*inputs, about], outputs=outputs)
        for row, entity in enumerate(entities):
            who, why = value(found, WHO, row).decode(), value(found, WHY, row).decode()
            values = ", ".join(f"{name} {value(found, name, row)}" for name in names)
            print(f"{entity}: {who} ({why}): {values}")


def tensor(name: str, datatype: str, shape: list[int]) -> triton.InferInput:
    """Zeros, or empty strings, of a shape."""
    made = triton.InferInput(name, shape, datatype)
    kind = triton_to_np_dtype(datatype)
    made.set_data_from_numpy(np.full(shape, "" if datatype == "BYTES" else 0, kind))
    return made


def value(found: triton.InferResult, name: str, row: int) -> Any:  # noqa: ANN401
    """A row of an output."""
    array = found.as_numpy(name)
    if array is None:
        raise SystemExit(f"the answer has no output {name}")
    return array[row]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("model")
    parser.add_argument("entities", nargs="+", metavar="entity")
    return parser.parse_args()


if __name__ == "__main__":
    main()
