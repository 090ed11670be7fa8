"""openai's Python SDK: chat and completions, streamed and not, tools, schemas, log-probabilities, errors, retries."""

import json

import openai
from openai import OpenAI
from pydantic import BaseModel

from live import NAME, Server, passed

with Server("--api-key", "k") as server:
    client = OpenAI(base_url=server.url + "/v1", api_key="k")
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    messages = [{"role": "user", "content": "Hello"}]
    chat = dict(model=NAME, messages=messages, max_tokens=16, seed=7)
    whole = client.chat.completions.create(**chat, logprobs=True, top_logprobs=3)
    choice = whole.choices[0]
    assert choice.finish_reason in ("stop", "length") and whole.usage.completion_tokens <= 16
    assert len(choice.logprobs.content) == whole.usage.completion_tokens and len(choice.logprobs.content[0].top_logprobs) == 3
    chunks = list(client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == choice.message.content and chunks[-1].usage == whole.usage, (text, choice.message.content)

    completion = dict(model=NAME, prompt=["One", "Two"], max_tokens=6, seed=1, extra_body={"ignore_eos": True})
    whole = client.completions.create(**completion, logprobs=2, echo=True)
    assert len(whole.choices) == 2 and whole.choices[0].text.startswith("One") and whole.choices[0].logprobs.token_logprobs[0] is None
    texts = ["", ""]
    for chunk in client.completions.create(**completion, stream=True):
        for part in chunk.choices:
            texts[part.index] += part.text
    assert ["One" + texts[0], "Two" + texts[1]] == [c.text for c in whole.choices], texts

    class Answer(BaseModel):
        ok: bool

    parsed = client.chat.completions.parse(model=NAME, messages=messages, response_format=Answer, max_tokens=100, seed=3)
    assert isinstance(parsed.choices[0].message.parsed, Answer)
    with client.chat.completions.stream(model=NAME, messages=messages, response_format=Answer, max_tokens=100, seed=3) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0].message
    assert (final.content, final.parsed) == (parsed.choices[0].message.content, parsed.choices[0].message.parsed)
    function = {"name": "look", "parameters": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"],
                                               "additionalProperties": False}}
    called = client.chat.completions.create(
        model=NAME, messages=messages, tools=[{"type": "function", "function": function}], tool_choice="required", parallel_tool_calls=False, max_tokens=300, temperature=0)
    call = called.choices[0].message.tool_calls[0]
    assert call.function.name == "look" and isinstance(json.loads(call.function.arguments)["x"], bool)

    def refused(kind, code, **change):
        try:
            client.chat.completions.create(**{**chat, **change})
        except kind as error:
            assert error.code == code, error
        else:
            raise AssertionError(f"{code} was not raised")

    refused(openai.BadRequestError, "invalid_value", temperature=3)
    refused(openai.NotFoundError, "model_not_found", model="other")
    refused(openai.BadRequestError, "context_length_exceeded", max_tokens=10**6)
    try:
        OpenAI(base_url=server.url + "/v1", api_key="wrong").models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
passed("chat, completions, streams, parse, tools, log-probabilities, errors")
