"""How long a training takes until its first step is finished."""
