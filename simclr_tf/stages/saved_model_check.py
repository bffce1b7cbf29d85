"""Inspects a SavedModel before it is loaded: a SavedModel is a program, and loading it runs parts of it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator

from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message

from simclr_tf.core.tf import tf

# Operations that no network needs to compute. Those by which a SavedModel saves and restores its variables are allowed.
_FILES = {
    *("ReadFile", "WriteFile", "MatchingFiles", "CreateSummaryFileWriter", "CreateSummaryDbWriter"),
    *(
        "WholeFileReader",
        "WholeFileReaderV2",
        "TextLineReader",
        "TextLineReaderV2",
        "TFRecordReader",
        "TFRecordReaderV2",
    ),
    *("TextLineDataset", "TFRecordDataset", "TFRecordDatasetV2", "FixedLengthRecordDataset"),
    *("FixedLengthRecordDatasetV2", "FixedLengthRecordReader", "FixedLengthRecordReaderV2"),
}
_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


def objection(folder: str) -> str | None:
    """Returns why a SavedModel must not be loaded; None if it only computes, or cannot be read at all."""
    try:
        model = _read(folder)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError, tf.errors.OpError):
        return None  # The loader reports this.
    for node in _nodes(model):
        to_file = node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:")
        if to_file or node.op in _FILES | _PYTHON:
            what = "calls Python" if node.op in _PYTHON else "reads or writes files"
            return f"it {what} (operation {node.name!r} is {node.op}), which no network needs to compute"
    for graph in model.meta_graphs:
        for asset in graph.asset_file_def:
            path = os.path.normpath(asset.filename)
            if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
                return f"its asset {asset.filename!r} lies outside of it"
    return None


def _read(folder: str) -> Message:
    # Imported late: TensorFlow has to start in the way that `core.tf` prepares.
    saved_model = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2").SavedModel
    binary = os.path.join(folder, "saved_model.pb")
    if tf.io.gfile.exists(binary):
        with tf.io.gfile.GFile(binary, "rb") as file:
            return saved_model.FromString(file.read())
    with tf.io.gfile.GFile(f"{binary}txt") as file:
        return text_format.Parse(file.read(), saved_model())


def _nodes(model: Message) -> Iterator[Message]:
    """Yields every operation, including those of functions."""
    for graph in model.meta_graphs:
        for nodes in (graph.graph_def.node, *(function.node_def for function in graph.graph_def.library.function)):
            yield from nodes
