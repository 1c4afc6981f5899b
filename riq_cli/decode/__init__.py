"""Archive → restored weights. It knows nothing of how they were compressed, nor of onnx and onnxruntime."""

from riq_cli.decode.layers import decode_layer, decode_layers, decode_scales, symbol_counts

__all__ = ["decode_layer", "decode_layers", "decode_scales", "symbol_counts"]
