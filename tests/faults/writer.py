"""A process that changes one model for ever and says each change that was acknowledged, until it is killed.

`python writer.py DATA MODEL SEED` prints a line of JSON after each verb that returned.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable

import msgspec

import turnout
from models import linear_matrix
from turnout.domain import Version
from turnout.errors import TurnoutError
from turnout.records import Author


class Writer:
    def __init__(self, hub: turnout.Turnout, model: str, seed: int) -> None:
        self.hub, self.model = hub, model
        self.random = random.Random(seed)
        self.verbs: dict[Callable[[], object], int] = {
            self.activate: 4,
            self.rollback: 2,
            self.split: 5,
            self.promote: 1,
            self.stop: 1,
            self.override: 3,
            self.forget: 2,
            self.register: 3,
            self.delete: 2,
        }

    def run(self) -> None:
        say(action="open")
        while True:
            verb = self.random.choices(list(self.verbs), list(self.verbs.values()))[0]
            try:
                verb()
            except TurnoutError as error:
                if error.status >= 500:
                    raise
                continue  # there is no test to stop just now, or the version is in use
            head = msgspec.to_builtins(self.hub.model(self.model))
            say(action=verb.__name__, generation=self.hub.last_change.generation, head=head)

    def label(self) -> str:
        return self.random.choice(self.hub.list_versions(self.model)).version

    def activate(self) -> None:
        self.hub.activate_version(self.model, self.label(), reason="because")

    def rollback(self) -> None:
        self.hub.rollback(self.model)

    def split(self) -> None:
        share = self.random.random()
        self.hub.configure_test(self.model, {"v1": share, "v2": 1 - share})

    def promote(self) -> None:
        self.hub.promote_winner(self.model, self.random.choice(["v1", "v2"]))

    def stop(self) -> None:
        self.hub.stop_test(self.model)

    def override(self) -> None:
        self.hub.set_override(self.model, self.random.randrange(20), self.label())

    def forget(self) -> None:
        self.hub.delete_override(self.model, self.random.randrange(20))

    def register(self) -> None:
        """As `register_version` does, but for the probe, which would take nearly all of the time."""
        upload = self.hub.artifacts.stage_stream()
        upload.write(linear_matrix([1.0, 2.0], bias=self.random.random()))
        staged = upload.finish()
        like: Version = self.hub.list_versions(self.model)[0]
        candidate = msgspec.structs.replace(
            like, version=f"n{self.random.randrange(10**6)}", artifact=staged.artifact
        )
        self.hub._commit(lambda: self.hub.registry.register(candidate, staged.place, Author("writer")))

    def delete(self) -> None:
        """Not those that the tests are between."""
        extra = [version.version for version in self.hub.list_versions(self.model)[2:]]
        if extra:
            self.hub.delete_version(self.model, self.random.choice(extra))
        else:
            self.register()


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    data, model, seed = sys.argv[1:]
    Writer(turnout.open(data), model, int(seed)).run()
