"""MLflow: one run of a tracking server, or of an SQLite file in the run's folder.

Law: MLflow keeps what it was given, so nothing is given twice: what it holds of each metric is asked for at the start,
and not sent again. Where to: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, else `<run>/mlflow.db`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autoresume.loggers.base import Record, RunInfo

_AT_ONCE = 1000
"""Metrics in one request: what the server takes at most."""
_PARAM_CHARACTERS = 500
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "SCHEDULED", "ended": "SCHEDULED"}
"""A run that was interrupted is to run again."""


class Handle(NamedTuple):
    """What `run.logger("mlflow")` gives."""

    client: Any
    run_id: str


class MlflowLogger:
    """Needs the package mlflow, or mlflow-skinny for a server."""

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the publisher tries again by itself
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        import mlflow

        self._mlflow: Any = mlflow
        self.handle: Handle | None = None
        self._held: dict[str, int] = {}

    def open(self, run: RunInfo, resumed_step: int) -> tuple[int, Mapping[str, str]]:
        uri = run.identity.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
        uri = uri or f"sqlite:///{run.folder.absolute()}/mlflow.db"
        client = self._mlflow.MlflowClient(tracking_uri=uri)
        run_id = run.identity.get("run_id") or self._create(client, run, uri)
        found = client.get_run(run_id)
        client.update_run(run_id, status="RUNNING")
        self.handle = Handle(client, run_id)
        # The newest step of each metric: the entities that the public mapping of values is made of.
        self._held = {metric.key: int(metric.step) for metric in found.data._metric_objs}
        held = min([resumed_step, *self._held.values()]) if self._held else -1
        identity = {"run_id": run_id, "experiment_id": str(found.info.experiment_id), "tracking_uri": uri}
        return held, identity

    def _create(self, client: Any, run: RunInfo, uri: str) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        experiment = client.get_experiment_by_name(name)
        options = (
            {} if not uri.startswith("sqlite:") else {"artifact_location": f"file://{run.folder.absolute()}/mlflow"}
        )
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name, **options)
        tags = {"autoresume.run_id": run.run_id, "autoresume.run_dir": str(run.folder.absolute())}
        if run.origin:
            tags["autoresume.origin"] = run.origin
        if run.parent.get("tracking_uri") == uri and run.parent.get("run_id"):
            tags["mlflow.parentRunId"] = run.parent["run_id"]
        elif run.parent.get("run_id"):
            tags["autoresume.parent"] = run.parent["run_id"]
        made = client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
        params = [self._mlflow.entities.Param(key, str(value)[:_PARAM_CHARACTERS]) for key, value in run.config.items()]
        for begin in range(0, len(params), 100):
            client.log_batch(made, params=params[begin : begin + 100])
        return str(made)

    def write(self, records: Sequence[Record]) -> None:
        assert self.handle is not None
        client, run_id = self.handle
        metrics, texts = [], {}
        for record in records:
            for name, value in record.values.items():
                if isinstance(value, (bool, int, float)):
                    if record.step > self._held.get(name, -1):
                        moment = int(record.time * 1000)
                        metrics.append(self._mlflow.entities.Metric(name, float(value), moment, record.step))
                elif value is not None:
                    texts[name] = value
        for begin in range(0, len(metrics), _AT_ONCE):
            some = metrics[begin : begin + _AT_ONCE]
            client.log_batch(run_id, metrics=some)
            for metric in some:
                self._held[metric.key] = metric.step
        for name, text in texts.items():
            client.set_tag(run_id, name, text)

    def flush(self) -> None: ...

    def close(self, how: str) -> None:
        assert self.handle is not None
        client, run_id = self.handle
        if how in ("finished", "failed"):
            client.set_terminated(run_id, status=_STATUS[how])
        else:
            client.update_run(run_id, status=_STATUS.get(how, "SCHEDULED"))
