"""The Open Inference Protocol as tests speak it: paths, bodies with tensors in JSON and in binary, and answers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import ml_dtypes
import numpy as np
import pytest

import turnout
from servers import Server
from turnout.domain import SessionOptions
from turnout.probe import Probe, examine

LENGTH = "Inference-Header-Content-Length"
DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
SIX: dict[str, list[Any]] = {
    "BOOL": [True, False, False, True, True, False],
    "UINT8": [0, 1, 2, 127, 128, 255],
    "UINT16": [0, 1, 2, 255, 256, 65535],
    "UINT32": [0, 1, 2, 65535, 65536, 2**32 - 1],
    "UINT64": [0, 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1],
    "INT8": [-128, -1, 0, 1, 2, 127],
    "INT16": [-(2**15), -1, 0, 1, 128, 2**15 - 1],
    "INT32": [-(2**31), -1, 0, 1, 2**15, 2**31 - 1],
    "INT64": [-(2**63), -(2**53) - 1, -1, 0, 2**53 + 1, 2**63 - 1],
    "FP16": [-65504.0, -1.5, 0.0, 6e-8, 0.1, 65504.0],
    "BF16": [-3e38, -1.5, 0.0, 1e-38, 0.1, 3e38],
    "FP32": [-3.4e38, -1.5, 0.0, 1e-45, 0.1, 3.4e38],
    "FP64": [-1.7e308, -1.5, 0.0, 5e-324, 0.1, 1.7e308],
    "BYTES": ["", "a", "ü", "日本", '🙂 \\ " / \n\t', "x" * 300],
}
"""Six values of each datatype, the least and the greatest among them."""


class Given(NamedTuple):
    """An input."""

    name: str
    datatype: str
    values: np.ndarray
    binary: bool = False


def array_of(datatype: str, *shape: int) -> np.ndarray:
    """Values of a datatype, over and over, in a shape."""
    count = int(np.prod(shape, dtype=np.int64))
    values = np.empty(count, DTYPES[datatype])
    values[:] = [SIX[datatype][index % 6] for index in range(count)]
    return values.reshape(shape)


def packed(datatype: str, values: np.ndarray) -> bytes:
    """Values in binary: little-endian, row-major, strings behind their lengths."""
    if datatype != "BYTES":
        return values.tobytes()
    texts = [text if isinstance(text, bytes) else text.encode() for text in values.reshape(-1)]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def unpacked(datatype: str, shape: list[int], content: bytes) -> np.ndarray:
    """What `packed` has made; strings as texts."""
    if datatype != "BYTES":
        return np.frombuffer(content, DTYPES[datatype]).reshape(shape)
    texts: list[str] = []
    while content:
        (length,) = struct.unpack_from("<I", content)
        assert len(content) >= 4 + length
        texts.append(content[4 : 4 + length].decode())
        content = content[4 + length :]
    found = np.empty(len(texts), np.object_)
    found[:] = texts
    return found.reshape(shape)


def target(model: str, version: str | None = None, verb: str | None = "infer") -> str:
    """The path of a model, or of one of its versions, each name percent-encoded."""
    parts = [model] if version is None else [model, "versions", version]
    parts = [part if index == 1 else quote(part, safe="") for index, part in enumerate(parts)]
    return "/".join(["/v2/models", *parts, *([] if verb is None else [verb])])


def body_of(*inputs: Given, **fields: Any) -> tuple[bytes, dict[str, str]]:
    """A request, and the headers that it needs."""
    described: list[dict[str, Any]] = []
    behind = b""
    for name, datatype, values, binary in inputs:
        tensor: dict[str, Any] = {"name": name, "shape": list(values.shape), "datatype": datatype}
        if binary:
            content = packed(datatype, values)
            tensor["parameters"] = {"binary_data_size": len(content)}
            behind += content
        else:
            tensor["data"] = values.reshape(-1).tolist()
        described.append(tensor)
    head = json.dumps({**fields, "inputs": described}).encode()
    binaries = any(given.binary for given in inputs)
    return head + behind, {LENGTH: str(len(head))} if binaries else {}


def infer(
    server: Server,
    model: str,
    *inputs: Given,
    version: str | None = None,
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> httpx.Response:
    """Ask for an inference."""
    content, needed = body_of(*inputs, **fields)
    return server.client.post(target(model, version), content=content, headers={**needed, **(headers or {})})


def outputs_of(response: httpx.Response) -> dict[str, np.ndarray]:
    """The outputs of an answer that is as the protocol wants it."""
    assert response.status_code == 200, response.text
    return tensors_of(response.content, {**response.headers})


def tensors_of(content: bytes, headers: dict[str, str]) -> dict[str, np.ndarray]:
    """The outputs of an answer's body; every byte of it belongs to something."""
    head = head_of(content, headers)
    length = headers.get(LENGTH.lower())
    assert headers["content-type"] == ("application/json" if length is None else "application/octet-stream")
    behind = b"" if length is None else content[int(length) :]
    found: dict[str, np.ndarray] = {}
    for output in head["outputs"]:
        name, datatype, shape = output["name"], output["datatype"], output["shape"]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[name] = np.array(output["data"], DTYPES[datatype]).reshape(shape)
        else:
            assert "data" not in output
            assert len(behind) >= size
            found[name] = unpacked(datatype, shape, behind[:size])
            behind = behind[size:]
    assert behind == b""
    return found


def head_of(content: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """The JSON of an answer."""
    length = headers.get(LENGTH.lower())
    return json.loads(content if length is None else content[: int(length)])


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer that is one."""
    assert response.status_code == 200, response.text
    return head_of(response.content, {**response.headers})


def assert_error(response: httpx.Response, status: int, *said: str) -> str:
    """The answer is a refusal in the protocol's form, and says all this; its text."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert set(document) == {"error"}
    text = document["error"]
    for part in said:
        assert part in text
    assert "Traceback" not in text
    return text


# --- models ---------------------------------------------------------------------------------------------------------


def register(data: Path, graphs: Mapping[tuple[str, str], bytes], **options: Any) -> None:
    """Register versions in a data directory, which a server may have; the first one of each model is active then.

    They are probed in this process: one of its own for each, as it has to be for files of strangers, takes a second.
    """
    with turnout.open(data) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("turnout.service.probe_file", _probed)
        known = {model.name for model in hub.models()}
        for (model, version), graph in graphs.items():
            file = data.parent / "graph.onnx"
            file.write_bytes(graph)
            hub.register_version(model, version, file, options=SessionOptions(**options))
            if model not in known:
                known.add(model)
                hub.activate_version(model, version)


def _probed(
    path: Path,
    *,
    device: str,
    seconds: float,
    memory_bytes: int,
    width: int | None = None,
    options: SessionOptions | None = None,
) -> Probe:
    return examine(path, device, width or 0, options or SessionOptions())
