"""`--mode=export`: writes a trained network as SavedModels for TF Hub and TF Serving, TFLite, ONNX or safetensors."""
