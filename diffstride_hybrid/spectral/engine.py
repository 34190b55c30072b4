"""The engine that pools: that of TensorFlow, which is tuned, or a plain one for JAX and PyTorch."""

from diffstride_hybrid.backends import current

if current.NAME == "tensorflow":
    from diffstride_hybrid.spectral.tensorflow.matmul import matmul_macs
    from diffstride_hybrid.spectral.tensorflow.pooling import pool_maps, pool_signals, shares_graph
else:
    from diffstride_hybrid.spectral.plain import matmul_macs, pool_maps, pool_signals, shares_graph

__all__ = ["matmul_macs", "pool_maps", "pool_signals", "shares_graph"]
