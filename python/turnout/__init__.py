"""Turnout serves versioned ONNX models and decides, for every prediction, which version answers it.

hub = turnout.open("./data")
hub.register_version("churn", "v1.0", "churn-v1.0.onnx", features=["totalSpent", "accountAge"])
hub.activate_version("churn", "v1.0", reason="first release")
hub.predict("churn", {"totalSpent": 12.5, "accountAge": 90}, entity_id="user-123")
"""

from turnout import errors
from turnout._core import __version__
from turnout.answers import BatchPrediction
from turnout.bundle import Bundle
from turnout.config import Settings
from turnout.domain import (
    Arm,
    Assignment,
    AuditEvent,
    Change,
    Comparison,
    Deployment,
    Distribution,
    Feature,
    History,
    Model,
    Prediction,
    RowError,
    SessionOptions,
    Signature,
    Status,
    Test,
    Version,
    VersionState,
)
from turnout.errors import TurnoutError
from turnout.experiment.outcomes import Attributed, Outcome
from turnout.experiment.receipts import Receipt
from turnout.experiment.results import Results
from turnout.experiment.sizing import size_test
from turnout.plans import Allocation, Guardrail, Metric, Plan, Step
from turnout.service import Turnout, open  # noqa: A004

__all__ = [
    "Allocation",
    "Arm",
    "Assignment",
    "Attributed",
    "AuditEvent",
    "BatchPrediction",
    "Bundle",
    "Change",
    "Comparison",
    "Deployment",
    "Distribution",
    "Feature",
    "Guardrail",
    "History",
    "Metric",
    "Model",
    "Outcome",
    "Plan",
    "Prediction",
    "Receipt",
    "Results",
    "RowError",
    "SessionOptions",
    "Settings",
    "Signature",
    "Status",
    "Step",
    "Test",
    "Turnout",
    "TurnoutError",
    "Version",
    "VersionState",
    "__version__",
    "errors",
    "open",
    "size_test",
]
