"""`StrideConstraint`: keeps learned strides between limits, and notices an optimizer that shrinks them."""

from __future__ import annotations

import sys
import warnings
import weakref
from typing import Any

import keras
from keras import ops

from diffstride_hybrid.common.arguments import Strides
from diffstride_hybrid.common.registration import register

_FRAMES = 4
"""Among how many callers the optimizer is sought that applies a constraint. It is the nearest one in Keras 3.15."""

_LOOKED_AT: weakref.WeakSet[keras.optimizers.Optimizer] = weakref.WeakSet()
"""The optimizers whose decay is known. One of them speaks for all strides that it trains."""


@register
class StrideConstraint(keras.constraints.Constraint):
    """Keeps strides between two limits, as the constraint of a weight. `DiffStride` sets it on its own weight.

    Calling it with a floating-point tensor returns the tensor clipped to the limits, in its own shape and dtype. If an
    optimizer calls it that decays strides too, it warns once: decay towards 0 shrinks a stride, whose neutral value
    is 1.

    Args:
        lower_limit: least stride, one number for both axes or one for each. 1 if None.
        upper_limit: greatest stride, one number for both axes or one for each. Unlimited if None.

    Example:
        >>> StrideConstraint(lower_limit=[1.5, 2.0], upper_limit=4.0)(np.array([0.0, 9.0])).numpy().tolist()
        [1.5, 4.0]
    """

    def __init__(self, lower_limit: Strides | None = None, upper_limit: Strides | None = None):
        self.lower_limit = lower_limit
        self.upper_limit = upper_limit

    def __call__(self, strides: Any) -> Any:
        self._warn_of_decay()
        strides = ops.convert_to_tensor(strides)
        lower = ops.convert_to_tensor(1.0 if self.lower_limit is None else self.lower_limit, strides.dtype)
        strides = ops.maximum(strides, lower)
        if self.upper_limit is None:
            return strides
        return ops.minimum(strides, ops.convert_to_tensor(self.upper_limit, strides.dtype))

    def get_config(self) -> dict[str, Any]:
        return {"lower_limit": self.lower_limit, "upper_limit": self.upper_limit}

    def _warn_of_decay(self) -> None:
        """Warns if the optimizer that applies this constraint decays strides, once for each optimizer.

        Neither a layer nor a weight is told which optimizer trains it, so the optimizer is looked up among the callers.
        """
        frame = sys._getframe(2)
        for _ in range(_FRAMES):
            optimizer = frame.f_locals.get("self")
            if isinstance(optimizer, keras.optimizers.Optimizer):
                break
            if frame.f_back is None:
                return
            frame = frame.f_back
        else:
            return
        if optimizer in _LOOKED_AT:
            return
        _LOOKED_AT.add(optimizer)
        strides = [each for each in optimizer._trainable_variables if isinstance(each.constraint, StrideConstraint)]
        if not optimizer.weight_decay or not (decayed := list(filter(optimizer._use_weight_decay, strides))):
            return
        # Python shows a text once, so that a text without names would be missing for the second model of a process.
        warnings.warn(
            f"The weight decay of {type(optimizer).__name__} shrinks the strides {', '.join(w.path for w in decayed)}. "
            "Keep it from them before training: optimizer.exclude_from_weight_decay(var_names=['strides']).",
            stacklevel=3,
        )
