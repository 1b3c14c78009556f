"""What may come next in an answer that has to be of a given form. `runtime.constraints` makes them; the pipeline asks.

session.stream("Is there a person?", images=[frame], constraint=choice(["yes", "no"]))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Matcher(Protocol):
    """Follows one answer. One thread, one answer.

    However the tokens are chosen among those allowed, the answer is whole after at most ``budget`` tokens.
    """

    @property
    def done(self) -> bool:
        """Whether the answer is whole and nothing can follow: it ends here without an end token."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """bool [V]: tokens that may come next, never none; end tokens where the answer may end. Valid until `push`."""

    def push(self, token_id: int) -> bool:
        """``token_id`` was chosen among those allowed. False: no whole answer with it fits into the budget, so it is
        not taken, `allowed` lacks it from now on, and another is to be chosen; that ends after a few refusals."""

    def forced(self) -> Sequence[int]:
        """The tokens that must come next whatever the model says, possibly none. They are pushed like any other, and
        taken."""


class Constraint(Protocol):
    """The form itself; checked when it is made, compiled for a tokenizer when an answer begins."""

    def matcher(self, tokenizer_json: str, vocab: int, stop_ids: Sequence[int], budget: int) -> Matcher:
        """A matcher for one answer of at most ``budget`` tokens (the end token is not among them).

        Raises InputError when no answer of this form fits into ``budget`` tokens.
        """
