"""Observations to records and back: the tensors go through a pool, everything else stands in the record."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.sparse
import torch

from benchmark.bundles.pool import Pool
from benchmark.bundles.schema import (
    CiphertextRecord,
    EnvelopeRecord,
    MatrixRecord,
    Names,
    NothingRecord,
    ObservationRecord,
    PlainModelRecord,
    SparseLayersRecord,
    ViewRecord,
)
from federation.errors import DataError, MalformedMessage, UsageError
from federation.messages import Envelope, Transcript, raw_tensors_from_bytes, tensors_to_bytes
from federation.network import Network
from federation.threat import Auxiliary, Ciphertext, KeyedImage, Nothing, Observation, PlainModel, SparseLayers, View
from federation.weights import check_layout


def record_of(observation: Observation, pool: Pool) -> ObservationRecord:
    """The observation as a record, its tensors in the pool."""
    return ObservationRecord(
        round=observation.round,
        transcript=tuple(_envelope_record(envelope, pool) for envelope in observation.transcript),
        held={name: pool.add_bytes(state) for name, state in observation.held.items()},
        view=_view_record(observation.view, pool),
        scheme={name: dict(options) for name, options in observation.scheme.items()},
        facts=observation.facts,
        mean=observation.mean,
        deviation=observation.deviation,
        has_auxiliary=observation.auxiliary is not None,
        oracles={oracle: pool.add(value) for oracle, value in observation.oracles.items()},
        own_updates={client: pool.add_all(weights) for client, weights in observation.own_updates.items()},
    )


def observation_of(record: ObservationRecord, pool: Pool, network: Network, auxiliary: Auxiliary) -> Observation:
    """The observation that a record was made of.

    Raises:
        DataError: for tensors that are missing, or that are not those of the network.
    """
    view = _view_of(record.view, pool)
    if isinstance(view, PlainModel):
        for name, weights in {"the model before": view.before, **view.after}.items():
            try:
                check_layout(weights, network.layout, name)
            except MalformedMessage as error:
                raise DataError(str(error)) from error
    if not len(record.mean) == len(record.deviation) == network.image_shape[0]:
        raise DataError(f"images of {network.image_shape[0]} channels need as many means and deviations")
    return Observation(
        round=record.round,
        transcript=Transcript(_envelope_of(item, pool) for item in record.transcript),
        held={name: pool.get_bytes(state) for name, state in record.held.items()},
        view=view,
        scheme=record.scheme,
        facts=record.facts,
        network=network,
        mean=record.mean,
        deviation=record.deviation,
        auxiliary=auxiliary if record.has_auxiliary else None,
        oracles={oracle: pool.get(name) for oracle, name in record.oracles.items()},
        own_updates={client: pool.get_all(names) for client, names in record.own_updates.items()},
    )


def _envelope_record(envelope: Envelope, pool: Pool) -> EnvelopeRecord:
    payload: Names | str
    try:
        payload = pool.add_all(raw_tensors_from_bytes(envelope.payload, "payload"))
    except MalformedMessage:
        payload = pool.add_bytes(envelope.payload)
    return EnvelopeRecord(
        round=envelope.round, phase=envelope.phase, sender=envelope.sender, receiver=envelope.receiver, payload=payload
    )


def _envelope_of(record: EnvelopeRecord, pool: Pool) -> Envelope:
    if isinstance(record.payload, str):
        payload = pool.get_bytes(record.payload)
    else:
        payload = tensors_to_bytes(pool.get_all(record.payload))
    return Envelope(record.round, record.phase, record.sender, record.receiver, payload)


def _view_record(view: View, pool: Pool) -> ViewRecord:
    if isinstance(view, PlainModel):
        after = {sender: pool.add_all(weights) for sender, weights in view.after.items()}
        return PlainModelRecord(before=pool.add_all(view.before), after=after, hidden_by=tuple(sorted(view.hidden_by)))
    if isinstance(view, SparseLayers):
        layers = {sender: _matrix_records(matrices, pool) for sender, matrices in view.after.items()}
        hidden = tuple(sorted(view.hidden_by))
        return SparseLayersRecord(before=_matrix_records(view.before, pool), after=layers, hidden_by=hidden)
    if isinstance(view, Ciphertext):
        return CiphertextRecord(scheme=view.scheme, byte_count=view.byte_count)
    if isinstance(view, KeyedImage):
        raise UsageError("a bundle holds updates, and a keyed image is none")
    return NothingRecord(reason=view.reason)


def _view_of(record: ViewRecord, pool: Pool) -> View:
    if isinstance(record, PlainModelRecord):
        after = {sender: pool.get_all(names) for sender, names in record.after.items()}
        return PlainModel(pool.get_all(record.before), after, frozenset(record.hidden_by))
    if isinstance(record, SparseLayersRecord):
        layers = {sender: _matrices_of(records, pool) for sender, records in record.after.items()}
        return SparseLayers(_matrices_of(record.before, pool), layers, frozenset(record.hidden_by))
    if isinstance(record, CiphertextRecord):
        return Ciphertext(record.scheme, record.byte_count)
    return Nothing(record.reason)


def _matrix_records(matrices: Mapping[str, scipy.sparse.csr_array], pool: Pool) -> dict[str, MatrixRecord]:
    return {
        name: MatrixRecord(
            shape=matrix.shape,
            **{part: pool.add(torch.from_numpy(getattr(matrix, part))) for part in ("data", "indices", "indptr")},
        )
        for name, matrix in matrices.items()
    }


def _matrices_of(records: Mapping[str, MatrixRecord], pool: Pool) -> dict[str, scipy.sparse.csr_array]:
    found = {}
    for name, record in records.items():
        parts = [pool.get(part).numpy().copy() for part in (record.data, record.indices, record.indptr)]
        if any(not np.issubdtype(part.dtype, np.integer) for part in parts[1:]):
            raise DataError(f"matrix {name!r}: rows and columns must be integers")
        try:
            found[name] = scipy.sparse.csr_array(tuple(parts), shape=record.shape)
            found[name].check_format(full_check=True)
        except ValueError as error:
            raise DataError(f"matrix {name!r}: {error}") from error
    return found
