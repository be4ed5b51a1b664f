"""What all changes have in common: who makes them, against which revision, and how far they have arrived."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypedDict, TypeVar
from urllib.parse import unquote

import msgspec
from litestar import Request, Response
from litestar.params import HeaderParameter, QueryParameter

from turnout.domain import Change
from turnout.errors import InvalidRequest
from turnout.service import Turnout

T = TypeVar("T")

ETAG = re.compile(r'"(\d{1,18})"')
MAX_ACTOR = 200
ANONYMOUS = "anonymous"


class Author(TypedDict):
    """The keywords of every verb that writes: who, and the revision that they had read (None: any)."""

    actor: str
    revision: int | None


IfMatch = Annotated[
    str | None,
    HeaderParameter(
        name="If-Match",
        schema_extra={"pattern": r'^("\d{1,18}"|\*)$'},
        description='The ETag of the model as you read it, such as `"7"`: the change is refused with 412 if somebody '
        "was faster. `*` or nothing: whatever the revision is.",
    ),
]
Actor = Annotated[
    str | None,
    HeaderParameter(
        name="X-Actor",
        description="Who makes the change, for the audit log; `anonymous` where nobody says. What is not ASCII is "
        "percent-encoded.",
    ),
]
Reason = Annotated[
    str, QueryParameter(name="reason", description="Why, for the audit log and the history.", max_length=2000)
]


def author(request: Request[Any, Any, Any], if_match: IfMatch = None, x_actor: Actor = None) -> Author:
    """Read the two headers of a write. Raises InvalidRequest for what is no ETag of ours or no name."""
    actor = _actor(x_actor)
    # For the line that the front logs when the change has been made.
    request.scope["state"]["actor"] = actor
    return Author(actor=actor, revision=_revision(if_match))


def etag(revision: int) -> str:
    """The ETag of a model at a revision."""
    return f'"{revision}"'


def read(hub: Turnout, model: str, value: T, revision: int | None = None) -> Response[T]:
    """Answer with something of a model, and the ETag to change it with."""
    return Response(
        value, headers={"ETag": etag(hub.model(model).revision if revision is None else revision)}
    )


def changed(hub: Turnout, value: Any, *, created: bool = False) -> Response[Any]:  # noqa: ANN401
    """Answer a change: 202 while live workers do not serve it yet (Turnout-Pending names them), else 200 or 201.

    To be called in the thread that made the change.
    """
    change = hub.last_change or Change(generation=0, revision=0)
    headers = {"Turnout-Generation": str(change.generation)}
    if change.revision:
        headers["ETag"] = etag(change.revision)
    status = 201 if created else 200
    if change.pending:
        headers["Turnout-Pending"] = ", ".join(change.pending)
        status = 202
    return Response(value, status_code=status, headers=headers)


def _revision(if_match: str | None) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    match = ETAG.fullmatch(if_match.strip())
    if match is None:
        raise InvalidRequest(
            f'If-Match: expected one strong ETag of the model such as "7", or *, found {if_match!r}'
        )
    return int(match[1])


def _actor(value: str | None) -> str:
    if not value:
        return ANONYMOUS
    try:
        # Litestar reads headers as Latin-1, people write UTF-8 into them.
        name = value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        name = value
    name = unquote(name).strip()
    if not name or len(name) > MAX_ACTOR or not name.isprintable():
        raise InvalidRequest(f"X-Actor: expected 1 to {MAX_ACTOR} printable characters, found {name[:60]!r}")
    return name


class Deleted(msgspec.Struct, frozen=True):
    """What was there is gone; where nothing was, the answer is 404."""

    deleted: bool
