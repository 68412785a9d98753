"""Values with the bounds that the OpenAPI document tells; the core, whose errors say more, holds requests to them."""

from typing import Annotated, Any

from msgspec import Meta


def told(**schema: Any) -> Meta:  # noqa: ANN401 - whatever a JSON schema holds
    """What the document says of a type beyond what is checked by it."""
    return Meta(extra_json_schema=schema)


AtLeastOne = Annotated[int, told(minimum=1)]
NotNegative = Annotated[int, told(minimum=0)]
TopLogprobs = Annotated[int, told(minimum=0, maximum=20)]
TopK = Annotated[int, told(minimum=-1, maximum=2**31)]
Seed = Annotated[int, told(minimum=-(2**63), maximum=2**64 - 1)]
Temperature = Annotated[float, told(minimum=0, maximum=100)]
MinP = Annotated[float, told(minimum=0, maximum=1)]
TopP = Annotated[float, told(exclusiveMinimum=0, maximum=1)]
Penalty = Annotated[float, told(minimum=-2, maximum=2)]
RepetitionPenalty = Annotated[float, told(minimum=0.01, maximum=100)]
Bias = Annotated[float, told(minimum=-100, maximum=100)]
Text = Annotated[str, told(minLength=1)]
StopStrings = Annotated[list[Text], told(maxItems=16)]
BadWords = Annotated[list[Text], told(minItems=1, maxItems=256)]
Choices = Annotated[list[Text], told(minItems=1, maxItems=1024)]
