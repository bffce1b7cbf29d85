"""Trained networks go out: SavedModels for TF Hub and TF Serving, TFLite and ONNX."""
