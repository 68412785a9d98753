"""``POST /tokenize`` and ``POST /detokenize``, in vLLM's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.serve._errors import invalid
from inference_pio.serve._json import json_response
from inference_pio.serve._openai.conversation import Prompt, beside, render
from inference_pio.serve._openai.token_types import DetokenizedText, DetokenizeRequest, TokenizeRequest, Tokens

if TYPE_CHECKING:
    from starlette.responses import Response

    from inference_pio.serve._call import Call


async def tokenize(call: Call) -> Response:
    """Tokens of a text or a conversation.

    Raises:
        ApiError: Neither, or both.
        PioError: It cannot be tokenized.
    """
    request = call.read(TokenizeRequest)
    model = await call.model(request.model)
    tokenizer = model.llm.get_tokenizer()
    if (request.prompt is None) == (request.messages is None):
        raise invalid("give either prompt or messages", "prompt")
    if request.messages is not None:
        prompt = await render(
            model,
            call.server.settings,
            request.messages,
            tools=request.tools,
            template_kwargs=request.chat_template_kwargs,
            add_generation_prompt=request.add_generation_prompt,
        )
    else:
        text = request.prompt or ""
        special = request.add_special_tokens
        prompt = await beside(lambda: Prompt(tokenizer.encode(text, add_special_tokens=special), text), len(text))
    spelled = [tokenizer.id_to_token(token_id) for token_id in prompt.token_ids] if request.return_token_strs else None
    return json_response(
        Tokens(
            count=len(prompt.token_ids),
            max_model_len=model.llm.max_model_len,
            tokens=prompt.token_ids,
            token_strs=spelled,
        )
    )


async def detokenize(call: Call) -> Response:
    """The text of tokens.

    Raises:
        ApiError: There is no such model.
        InvalidRequestError: A token that the tokenizer does not have.
    """
    request = call.read(DetokenizeRequest)
    tokenizer = (await call.model(request.model)).llm.get_tokenizer()
    return json_response(DetokenizedText(tokenizer.decode(request.tokens, skip_special_tokens=False)))
