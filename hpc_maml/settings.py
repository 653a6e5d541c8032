"""What the sections of a configuration are made of; config.py puts them together."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A group of keys; unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def broken_rule(complaints: Sequence[ErrorDetails]) -> str:
    """Say what a value must be, of Pydantic's complaints about it: one for each alternative."""
    rule = " or ".join(dict.fromkeys(each["msg"] for each in complaints))
    rule = rule.replace("Input should be", "must be", 1).replace("Input should be ", "")
    return rule.replace("Value error, ", "is refused: ", 1)  # by a check of a user's own
